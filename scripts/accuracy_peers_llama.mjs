// Writes llama.cpp's logits through node-llama-cpp for accuracy_peers_steps.py: for each window of WORK/ids.json, f32
// [window - 1, vocabulary], little-endian; then a JSON object.
import fs from "node:fs";

const [library, path, threads, work] = process.argv.slice(2);
const {getLlama} = await import(library);
const {ids, window: size} = JSON.parse(fs.readFileSync(`${work}/ids.json`, "utf8"));
const windows = [];
for (let start = 0; start + 1 < ids.length; start += size) windows.push(ids.slice(start, start + size));

const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: +threads});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: size, batchSize: size, threads: +threads});
const sequence = context.getSequence();

const output = fs.openSync("/dev/stdout", "w"); // blocks while the pipe is full, which descriptor 1 does not
function write(buffer) {
    for (let done = 0; done < buffer.length; ) done += fs.writeSync(output, buffer, done);
}

// One pass over a window without its last token, with what is asked for after each token.
async function evaluate(window, ask, onTokenResult) {
    await sequence.clearHistory();
    const generateNext = {...ask, options: {temperature: 0}};
    await sequence.controlledEvaluate(window.slice(0, -1).map((id) => [id, {generateNext}]), {onTokenResult});
}

for (const window of windows) {
    let rows;
    await evaluate(window, {logits: true}, (index, {next}) => {
        rows ??= new Float32Array((window.length - 1) * next.logits.size);
        const width = rows.length / (window.length - 1);
        for (const [token, logit] of next.logits) rows[index * width + token] = logit;
        next.logits.clear(); // all results of a window are kept until its end
    });
    write(Buffer.from(rows.buffer));
}

// Again for the time: maps of the whole vocabulary are slower than the model.
const started = performance.now();
for (const window of windows) await evaluate(window, {logits: {filter: {tokens: [0]}}});
const seconds = (performance.now() - started) / 1000;

const isa = llama.systemInfo.match(/(AVX|AMX)\w*(?= = 1)/g).join(" ");
const how = `llama.cpp ${llama.llamaCppRelease.release} through node-llama-cpp (${isa})`;
write(Buffer.from(JSON.stringify({how, seconds})));
process.exit(0);
