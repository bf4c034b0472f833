// Benchmarks llama.cpp through node-llama-cpp for bench_peers.py, which passes the arguments and reads the JSON.
const [library, path, threads, prompts, context, decoded] = process.argv.slice(2);
const {getLlama} = await import(library);

const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: +threads});

let started = performance.now();
const seconds = () => (performance.now() - started) / 1000;
const model = await llama.loadModel({modelPath: path});
const load = seconds();

const whole = await model.createContext({contextSize: 1024, batchSize: 512, threads: +threads, flashAttention: true});
const sequence = whole.getSequence();

// Starts a greedy generation after `count` tokens; returns once the first new token is there.
async function generation(count) {
    await sequence.clearHistory();
    started = performance.now();
    const ids = Array.from({length: count}, (_, i) => (i * 7919) % 5000 + 10);
    const tokens = sequence.evaluate(ids, {temperature: 0, yieldEogToken: true});
    await tokens.next();
    return tokens;
}

const prefill = {};
for (const count of prompts.split(",").map(Number))
    for (let run = 0; run < 2; run++) {
        const tokens = await generation(count);
        prefill[count] = count / seconds();
        await tokens.return();
    }

const tokens = await generation(+context);
started = performance.now();
for (let i = 0; i < +decoded; i++) await tokens.next();
const decode = +decoded / seconds();

const isa = llama.systemInfo.match(/(AVX|AMX)\w*(?= = 1)/g).join(" ");
console.log(JSON.stringify({version: llama.llamaCppRelease.release, isa, load, prefill, decode}));
process.exit(0);
