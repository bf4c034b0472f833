"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

// Text and formats ------------------------------------------------------------------------------

/** An element with a class (or none) and children, which are elements or text. */
function make(name, kind, ...children) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.append(...children.map(child => child instanceof Node ? child : String(child)));
  return element;
}
const say = (id, text) => { $(id).textContent = text; };
const whole = number => number.toLocaleString("en-US");
const short = number => number === null ? "not finite" : number === 0 ? "0" : String(+number.toPrecision(3));
function percent(share) {
  if (share === null || share === undefined) return "not known";
  const value = 100 * share;
  return (value === 0 ? "0" : value < 0.01 ? "< 0.01" : value < 10 ? value.toFixed(2) : value.toFixed(1)) + " %";
}
function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, bytes > 0 ? Math.floor(Math.log10(bytes) / 3) : 0);
  return +(bytes / 1000 ** unit).toPrecision(3) + " " + units[unit];
}
const named = item => item.block === null ? item.kind : `${item.block} · ${item.kind}`;
const sum = values => values.reduce((a, b) => a + b, 0);
/** Items by the value of `key`, in the order in which the values first occur. */
function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    if (!groups.has(key(item))) groups.set(key(item), []);
    groups.get(key(item)).push(item);
  }
  return groups;
}
function table(id, rows) {
  $(id).replaceChildren(...rows.map(([first, ...rest]) => {
    const head = make("th", "", first);
    head.scope = "row";
    return make("tr", "", head, ...rest.map(cell => make("td", "", cell)));
  }));
}

// The head of the page --------------------------------------------------------------------------

const int8 = data.layers.filter(layer => layer.input !== null);
/** Multiplications per row of the layers that read an input. */
const work = data.inputs.map((input, i) =>
  sum(int8.filter(layer => layer.input === i).map(layer => layer.in_features * layer.out_features)));

function drawHead() {
  // Of a path, the title has the end.
  const isPath = /^[./~]|\.gguf$/.test(data.model);
  const title = isPath ? data.model.split("/").filter(part => part !== "").pop() ?? data.model : data.model;
  document.title = `Outliers in ${title}`;
  say("title", title);
  const { unit, threshold, scope } = data.rule;
  const rule = threshold <= 0 ? "no value is an outlier"
    : unit === "rms" ? `outliers are values of ${threshold} × the root mean square of their row and more`
    : `outliers are values of magnitude ${threshold} and more` +
      (scope === "batch" ? ", whose columns are float in their whole window" : ", each row by itself");
  say("model", data.model);
  say("summary", `${whole(data.tokens)} tokens in windows of ${whole(data.window)}; ${rule}.`);

  const seen = data.inputs.filter(input => input.largest && input.largest.value !== null);
  const top = seen.reduce((a, b) => !a || Math.abs(b.largest.value) > Math.abs(a.largest.value) ? b : a, null);
  const emergent = data.recurring.features.filter(feature => feature.emergent).length;
  const facts = [
    ["work in float", percent(data.float_share), `${int8.length} layers in 8 bit`],
    ["largest activation", top ? short(top.largest.value) : "none",
      top ? `${named(top)}, feature ${top.largest.feature}` : ""],
    ["emergent features", whole(emergent), `of ${whole(data.recurring.count)} that recur`],
    ["memory", size(data.bytes.int8), `${size(data.bytes.float16)} in float16`],
  ];
  $("facts").append(...facts.map(([name, value, note]) =>
    make("div", "", make("dt", "", name), make("dd", "", value, make("small", "", note)))));
}

// The threshold ---------------------------------------------------------------------------------

const state = { unit: "batch", step: 0 };
const ladder = unit => data.ladders[unit === "rms" ? "rms" : "absolute"];
const isNone = () => state.step >= ladder(state.unit).length;

/** What an input has at the present threshold. */
function countsOf(input) {
  if (isNone()) return { values: 0, columns: 0, float: 0 };
  const counts = input[state.unit === "rms" ? "rms" : "absolute"];
  const values = counts.values[state.step];
  const float = state.unit === "batch" ? counts.pooled_values[state.step] : values;
  return { values, columns: counts.columns[state.step], float };
}
function shareOf(counts) {
  const all = sum(work);
  const float = sum(data.inputs.map((input, i) => work[i] * counts[i].float / (input.rows * input.features || 1)));
  return all ? float / all : 0;
}
function showThreshold() {
  const steps = ladder(state.unit);
  const slider = $("slider");
  slider.max = steps.length;
  slider.value = state.step;
  const text = isNone() ? "none" : state.unit === "rms" ? `${steps[state.step]} × RMS` : `≥ ${steps[state.step]}`;
  say("threshold", text);
  slider.setAttribute("aria-valuetext", text);
  document.querySelectorAll("[name=unit]").forEach(radio => { radio.checked = radio.value === state.unit; });

  const counts = data.inputs.map(countsOf);
  say("total-share", percent(shareOf(counts)));
  say("total-values", whole(sum(counts.map(count => count.values))));
  say("total-columns", whole(sum(counts.map(count => count.columns))));
  [...$("inputs").rows].forEach((row, i) => {
    const { rows, features } = data.inputs[i];
    const share = counts[i].float / (rows * features || 1);
    row.cells[2].textContent = whole(counts[i].columns);
    row.cells[3].textContent = short(counts[i].values / (rows || 1));
    row.querySelector(".share").textContent = percent(share);
    row.querySelector("i").style.width = `${100 * share}%`;
  });
}
/** Takes unit and threshold from the address, or the model's own. */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const { unit, threshold, scope } = data.rule;
  const own = unit === "rms" ? "rms" : scope;
  state.unit = ["batch", "row", "rms"].includes(asked.get("unit")) ? asked.get("unit") : own;
  const steps = ladder(state.unit);
  const text = asked.get("threshold") ?? (state.unit === own ? String(threshold) : state.unit === "rms" ? "4" : "6");
  const wanted = Number(text);
  const near = (a, b) => Math.abs(steps[b] - wanted) < Math.abs(steps[a] - wanted) ? b : a;
  state.step = wanted > 0 ? steps.map((_, i) => i).reduce(near, 0) : steps.length;
}
function writeAddress() {
  const threshold = isNone() ? 0 : ladder(state.unit)[state.step];
  history.replaceState(null, "", `#unit=${state.unit}&threshold=${threshold}`);
}
function drawThreshold() {
  table("inputs", data.inputs.map(input => {
    const meter = make("span", "meter", make("i"));
    meter.setAttribute("aria-hidden", "true");
    const largest = input.largest ? short(input.largest.value) : "0";
    return [named(input), make("span", "", make("span", "share"), meter), "", "", largest, whole(input.features)];
  }));

  $("slider").addEventListener("input", event => {
    state.step = Number(event.target.value);
    showThreshold();
    writeAddress();
  });
  document.querySelectorAll("[name=unit]").forEach(radio => radio.addEventListener("change", () => {
    const sameLadder = ladder(radio.value) === ladder(state.unit);
    const step = state.step;
    history.replaceState(null, "", `#unit=${radio.value}`);
    readAddress();
    if (sameLadder) state.step = step;
    showThreshold();
    writeAddress();
  }));
  addEventListener("hashchange", () => { readAddress(); showThreshold(); });

  readAddress();
  showThreshold();
}

// Heat maps -------------------------------------------------------------------------------------

/** The darkest colour is for this magnitude and more: one scale for every model. */
const DARKEST = 64;

/** Three numbers from 0 to 255 for a colour of the style sheet. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  const full = hex.length === 3 ? [...hex].map(digit => digit + digit).join("") : hex;
  return [0, 2, 4].map(i => parseInt(full.slice(i, i + 2), 16));
}
/** The colours of the ramp in style: from wash over accent at 65 % to ink. */
function ramp() {
  const [low, middle, high] = ["--wash", "--accent", "--ink"].map(colour);
  const mix = (a, b, t) => a.map((x, i) => x + t * (b[i] - x));
  return t => t < 0.65 ? mix(low, middle, t / 0.65) : mix(middle, high, (t - 0.65) / 0.35);
}
/** Draws a map with a column for each pixel of its width, which is the largest of its cells. */
function paint(canvas, inputs, colours) {
  const cells = Math.max(...inputs.map(input => input.cells.length));
  const width = Math.max(1, Math.min(cells, Math.floor(canvas.clientWidth * devicePixelRatio)));
  canvas.width = width;
  canvas.height = inputs.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, inputs.length);
  inputs.forEach((input, y) => {
    for (let x = 0; x < width; x++) {
      const first = Math.floor(x * cells / width);
      const after = Math.max(first + 1, Math.floor((x + 1) * cells / width));
      const value = Math.max(0, ...input.cells.slice(first, after).map(cell => cell ?? DARKEST));
      const t = value > 1 ? Math.min(1, Math.log(value) / Math.log(DARKEST)) : 0;
      image.data.set([...colours(t), 255], 4 * (y * width + x));
    }
  });
  context.putImageData(image, 0, 0);
}
function pointAt(inputs, x, y) {
  const input = inputs[y];
  const first = x * input.features_per_cell;
  const last = Math.min(input.features, first + input.features_per_cell) - 1;
  const which = first === last ? `feature ${first}` : `features ${first}–${last}`;
  say("cell", `${named(input)}, ${which}: at most ${short(input.cells[x])}`);
}
function drawMaps() {
  say("ramp-end", `${DARKEST} and more`);
  const per = Math.max(...data.inputs.map(input => input.features_per_cell));
  say("binned", per > 1 ? `Where a map is wider than 1,024 features, up to ${per} neighbours share a cell.` : "");
  const maps = [];
  for (const [kind, inputs] of grouped(data.inputs, input => `${input.kind} (${input.features})`)) {
    const canvas = make("canvas");
    canvas.style.height = `${Math.max(24, inputs.length * Math.max(5, Math.min(14, 240 / inputs.length)))}px`;
    canvas.style.imageRendering = "pixelated";
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label",
      `Largest magnitude by block and feature before ${kind}; the arrow keys move over it and read the values out`);
    const at = [0, 0];
    const limits = [inputs[0].cells.length, inputs.length];
    const move = (x, y) => {
      [x, y].forEach((value, i) => { at[i] = Math.max(0, Math.min(limits[i] - 1, value)); });
      pointAt(inputs, ...at);
    };
    canvas.addEventListener("pointermove", event => move(
      Math.floor(event.offsetX / canvas.clientWidth * limits[0]),
      Math.floor(event.offsetY / canvas.clientHeight * limits[1])));
    canvas.addEventListener("keydown", event => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(at[0] + step[0], at[1] + step[1]);
    });
    $("maps").append(make("h3", "", inputs[0].kind, " ", make("span", "soft", `${inputs[0].features} features`)), canvas);
    maps.push([canvas, inputs]);
  }
  const repaint = () => { const colours = ramp(); maps.forEach(([canvas, inputs]) => paint(canvas, inputs, colours)); };
  new ResizeObserver(repaint).observe($("maps"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
}

// Recurring features, errors --------------------------------------------------------------------

function drawRecurring() {
  const { inputs, count, features } = data.recurring;
  say("recurring-text", count === 0
    ? `No feature of the residual stream is an outlier in two of the ${inputs} inputs that read it.`
    : `${whole(count)} features of the residual stream are outliers in two or more of the ${inputs} inputs that read ` +
      `it${count > features.length ? `; those in the most rows are listed` : ""}. The LLM.int8() paper calls a feature ` +
      `emergent that is an outlier in a quarter of the layers and in 6 % of the rows.`);
  table("recurring", features.map(feature => [feature.feature, `${feature.inputs} of ${inputs}`,
    percent(feature.row_share), short(feature.largest), feature.emergent ? "yes" : ""]));
}
function drawErrors() {
  const against = data.errors_against === "float weights"
    ? "the checkpoint’s float weights" : "float activations on the dequantised weights; the checkpoint has no float ones";
  say("errors-text", `Bars: the error of the outputs on the same inputs, against ${against}. Lines: the error of the ` +
    `weights. Both are relative root mean squares, on one scale; from left to right, the blocks.`);
  const most = Math.max(1e-9, ...int8.flatMap(layer => [layer.output_error ?? 0, layer.weight_error ?? 0]));
  for (const [kind, layers] of grouped(int8, layer => layer.kind)) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${layers.length} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const add = (name, attributes) => {
      const shape = document.createElementNS(svg.namespaceURI, name);
      Object.entries(attributes).forEach(([key, value]) => shape.setAttribute(key, value));
      svg.append(shape);
    };
    layers.forEach((layer, i) => {
      const bar = (layer.output_error ?? 0) / most;
      add("rect", { class: "bar", x: i + 0.1, width: 0.8, y: 1 - bar, height: bar });
      const y = 1 - (layer.weight_error ?? 0) / most;
      if (layer.weight_error !== null) add("line", { class: "tick", x1: i, x2: i + 1, y1: y, y2: y });
    });
    const errors = layers.map(layer => layer.output_error ?? 0);
    const worst = errors.indexOf(Math.max(...errors));
    const text = `outputs: mean ${percent(sum(errors) / errors.length)}, at most ${percent(errors[worst])}` +
      (layers.length > 1 ? ` in block ${layers[worst].block}` : "");
    $("errors").append(make("figure", "", make("h3", "", kind), svg, make("figcaption", "", text)));
  }
  table("error-rows", int8.map(layer => [layer.path, `${layer.out_features} × ${layer.in_features}`,
    percent(layer.weight_error), percent(layer.output_error)]));
}

// Memory and tree -------------------------------------------------------------------------------

/** Modules with parameters, by kind: those of all blocks together. */
function memoryOf(node, path = [], found = new Map()) {
  if (node.elements > 0) {
    const number = path.findIndex(name => /^\d+$/.test(name));
    const kind = path.slice(number + 1).join(".");
    const item = found.get(kind) ?? { kind, dtype: node.dtype, before: 0, after: 0, count: 0 };
    item.before += 2 * node.elements;
    item.after += node.bytes;
    item.count += 1;
    found.set(kind, item);
  }
  node.children.forEach(child => memoryOf(child, [...path, child.name], found));
  return found;
}
/** Divides a rectangle among items with areas, largest first, by halves of about equal area. */
function divide(items, box, place) {
  if (items.length === 1) place(items[0], box);
  if (items.length < 2) return;
  const all = sum(items.map(item => item.area));
  let cut = 0, area = 0;
  do { area += items[cut++].area; } while (cut < items.length - 1 && area + items[cut].area / 2 < all / 2);
  const { x, y, width, height } = box, part = area / all;
  const [first, second] = width >= height
    ? [{ x, y, width: width * part, height }, { x: x + width * part, y, width: width * (1 - part), height }]
    : [{ x, y, width, height: height * part }, { x, y: y + height * part, width, height: height * (1 - part) }];
  divide(items.slice(0, cut), first, place);
  divide(items.slice(cut), second, place);
}
function drawMap(id, items, key, width) {
  const map = $(id);
  const shown = items.map(item => ({ ...item, area: item[key] })).filter(item => item.area > 0)
    .sort((a, b) => b.area - a.area);
  // 16 : 5 is about the shape that the map has on a wide screen.
  divide(shown, { x: 0, y: 0, width: 16 * width, height: 5 }, (item, box) => {
    const tile = make("div", key === "after" && item.dtype === "int8" ? "int8" : "", item.kind, make("br"), size(item.area));
    if (box.width < 0.6 || box.height < 0.6) tile.classList.add("sliver");
    tile.title = `${item.kind}: ${size(item.area)}`;
    const scale = { left: box.x / 0.16, top: box.y / 0.05, width: box.width / 0.16, height: box.height / 0.05 };
    Object.entries(scale).forEach(([side, value]) => { tile.style[side] = `${value}%`; });
    map.append(tile);
  });
  const whole = sum(shown.map(item => item.area));
  map.setAttribute("aria-label", shown.map(item => `${item.kind} ${percent(item.area / whole)}`).join(", "));
}
function drawMemory() {
  const items = [...memoryOf(data.tree).values()];
  const { float16, int8 } = data.bytes;
  say("before-title", `In float16: ${size(float16)}`);
  say("after-title", `As loaded: ${size(int8)} (${percent(int8 / float16)}); 8-bit layers in colour`);
  const most = Math.max(float16, int8);
  drawMap("before", items, "before", float16 / most);
  drawMap("after", items, "after", int8 / most);
  table("memory", items.map(item => [item.count > 1 ? `${item.count} × ${item.kind}` : item.kind,
    item.dtype, size(item.before), size(item.after)]));
}
const bytesOf = node => node.bytes + sum(node.children.map(bytesOf));
function branch(node) {
  const name = node.name || "model";
  const bytes = bytesOf(node);
  const note = make("span", "soft", ` ${node.class}${bytes ? ", " + size(bytes) : ""} `);
  if (!node.children.length) {
    const dtype = node.dtype === "int8" ? make("b", "", "int8") : make("span", "soft", node.dtype ?? "");
    return make("li", "", name, note, dtype);
  }
  const details = make("details", "", make("summary", "", name, note), make("ul", "", ...node.children.map(branch)));
  details.open = !node.name;
  return node.name ? make("li", "", details) : details;
}

drawHead();
drawThreshold();
drawMaps();
drawRecurring();
drawErrors();
drawMemory();
$("tree").append(branch(data.tree));
