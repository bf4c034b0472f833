// Benchmarks llama.cpp through node-llama-cpp for bench_peers.py, which passes the arguments and reads the JSON. With
// `batches`, only those are measured.
const [library, path, threads, prompts, context, decoded, ...batches] = process.argv.slice(2);
const {getLlama} = await import(library);

const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: +threads});

let started = performance.now();
const seconds = () => (performance.now() - started) / 1000;
const model = await llama.loadModel({modelPath: path});
const load = seconds();

const createContext = (contextSize, sequences) =>
    model.createContext({contextSize, sequences, batchSize: 512, threads: +threads, flashAttention: true});

// Starts a greedy generation after `count` tokens; returns once the first new token is there.
async function generation(sequence, count) {
    await sequence.clearHistory();
    started = performance.now();
    const ids = Array.from({length: count}, (_, i) => (i * 7919) % 5000 + 10);
    const tokens = sequence.evaluate(ids, {temperature: 0, yieldEogToken: true});
    await tokens.next();
    return tokens;
}

// Tokens/s of all sequences, which take each step together.
async function decoding(sequences) {
    const all = await Promise.all(sequences.map((sequence) => generation(sequence, +context)));
    started = performance.now();
    for (let i = 1; i < +decoded; i++) await Promise.all(all.map((tokens) => tokens.next()));
    const rate = (sequences.length * (+decoded - 1)) / seconds();
    await Promise.all(all.map((tokens) => tokens.return()));
    return rate;
}

const isa = llama.systemInfo.match(/(AVX|AMX)\w*(?= = 1)/g).join(" ");
const found = {version: llama.llamaCppRelease.release, isa, load};
if (batches.length) {
    found.batches = {};
    for (const size of batches.map(Number)) {
        const whole = await createContext(+context + +decoded, size);
        const sequences = Array.from({length: size}, () => whole.getSequence());
        found.batches[size] = Math.max(await decoding(sequences), await decoding(sequences));
        await whole.dispose();
    }
} else {
    const sequence = (await createContext(1024, 1)).getSequence();
    found.prefill = {};
    for (const count of prompts.split(",").map(Number))
        for (let run = 0; run < 2; run++) {
            const tokens = await generation(sequence, count);
            found.prefill[count] = count / seconds();
            await tokens.return();
        }
    found.decode = await decoding([sequence]);
}
console.log(JSON.stringify(found));
process.exit(0);
