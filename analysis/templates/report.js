"use strict";
// Report page of a run: a viewer of the samples' maps and a sortable table. The page holds all data; text from data is
// set as text content only.

const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- Packed maps: bytes of 1/255 of each map's scale ---------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

async function unpack(packed) {
  const deflated = new Blob([bytesOf(packed.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return {
    shape: packed.shape.slice(0, packed.shape.length - packed.axes),
    size: packed.shape.slice(packed.shape.length - packed.axes).reduce((a, b) => a * b, 1),
    scale: new Float32Array(bytesOf(packed.scale).buffer),
    bytes: new Uint8Array(await new Response(deflated).arrayBuffer()),
  };
}

// The map at the given indices, such as (layer, head, token), as numbers.
function mapAt(unpacked, ...indices) {
  const place = indices.reduce((sum, index, axis) => sum * unpacked.shape[axis] + index, 0);
  const bytes = unpacked.bytes.subarray(place * unpacked.size, (place + 1) * unpacked.size);
  return Float32Array.from(bytes, (byte) => (unpacked.scale[place] * byte) / 255);
}

async function unpackAll(node) {
  if (node === null || typeof node !== "object" || Array.isArray(node)) return node;
  if ("scale" in node && "data" in node) return unpack(node);
  const entries = Object.entries(node).map(async ([key, value]) => [key, await unpackAll(value)]);
  return Object.fromEntries(await Promise.all(entries));
}

// ---- Selection -----------------------------------------------------------------------------------------------------

const SOURCES = { rollout: "rollout", mean: "mean of a layer", head: "single head", encoder: "vision encoder", mask: "gaze mask" };
const data = JSON.parse(byId("data").textContent);
const chosen = { view: null, conditions: [], token: 0, source: "rollout", layer: 0, head: 0, cell: null, pinned: null };

// Kinds of maps besides rollout and attention, such as "gradient"; the source "gradient-head" shows its single heads.
const kindsOf = (condition) => condition.kinds ?? {};
const isHead = () => chosen.source === "head" || chosen.source.endsWith("-head");
const labelOf = (source) => SOURCES[source] ?? (source.endsWith("-head") ? `${source.slice(0, -5)}, single head` : source);

// Selected map of a token of one condition: {cells, text, shares}; text and shares are null where unknown.
function mapsOf(condition, token) {
  const { source, layer, head } = chosen;
  const kind = kindsOf(condition)[source.replace(/-head$/, "")];
  if (kind && !source.endsWith("-head")) return { cells: mapAt(kind.cells, token), text: null, shares: null };
  if (kind) return kind.head[layer] ? { cells: mapAt(kind.head[layer].cells, head, token), text: null, shares: null } : null;
  if (!(source in SOURCES)) return null;
  if (source === "mask") return condition.mask && { cells: mapAt(condition.mask.cells, 0), text: null, shares: null };
  if (source === "encoder") return condition.encoder && { cells: mapAt(condition.encoder.cells, token), text: null, shares: null };
  if (source === "rollout") return parts(condition.rollout, condition.rollout.shares[token], token);
  if (source === "mean") return parts(condition.mean, condition.mean.shares[layer][token], layer, token);
  const held = condition.head[layer];
  return held ? parts(held, mapAt(condition.shares, layer, head, token), head, token) : null;
}

// The quantity of the selected map: sums of rollout rows are no attention of a layer.
const quantity = () => (chosen.source === "rollout" ? "rollout mass" : "attention");

const parts = (held, shares, ...indices) => ({
  cells: mapAt(held.cells, ...indices),
  text: mapAt(held.text, ...indices),
  shares,
});

const tokenOf = (condition) => Math.min(chosen.token, condition.tokens.length - 1);
const conditionsShown = () => chosen.conditions.map((name) => [name, chosen.view.conditions[name]]);
const firstCondition = () => chosen.view.conditions[chosen.conditions[0]];

// ---- Drawing -------------------------------------------------------------------------------------------------------

const colourTables = Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, bytesOf(text)]));

function colourOf(share) {
  const place = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return colourTables[byId("colours").value].subarray(place, place + 3);
}

// A cell's colour is its share of the largest value; its opacity is the square root of that share times the slider.
function paint(canvas, cells) {
  const { rows, cols, left, top, right, bottom } = chosen.view.grid;
  const [width, height] = [canvas.width, canvas.height];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  const unseen = new Path2D();
  unseen.rect(0, 0, width, height);
  unseen.rect(...box);
  context.fillStyle = "rgba(0, 0, 0, 0.6)";
  context.fill(unseen, "evenodd");
  if (!cells) return;
  const largest = cells.reduce((a, b) => Math.max(a, b), 0) || 1;
  const opacity = Number(byId("opacity").value);
  const small = make("canvas", { width: cols, height: rows });
  const image = new ImageData(cols, rows);
  cells.forEach((value, cell) => {
    const share = value / largest;
    image.data.set(colourOf(share), 4 * cell);
    image.data[4 * cell + 3] = Math.round(255 * opacity * Math.sqrt(share));
  });
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = byId("smooth").checked;
  context.drawImage(small, ...box);
  for (const [cell, colour] of [[chosen.cell, "#ffffff"], [chosen.pinned, "#ff2d6f"]]) {
    if (cell === null) continue;
    const [x, y] = [box[0] + ((cell % cols) * box[2]) / cols, box[1] + (Math.floor(cell / cols) * box[3]) / rows];
    context.lineWidth = Math.max(2, width / 250);
    context.strokeStyle = colour;
    context.strokeRect(x, y, box[2] / cols, box[3] / rows);
  }
}

function drawPanels() {
  for (const [index, [name, condition]] of conditionsShown().entries()) {
    const panel = byId("panels").children[index];
    const shown = mapsOf(condition, tokenOf(condition));
    paint(panel.querySelector("canvas"), shown && shown.cells);
    const promptLength = condition.prompt.length;
    const text = shown && shown.text ? Array.from(shown.text, (value) => value) : [];
    const largest = Math.max(...text, 1e-9);
    const tint = (place) => `rgba(var(--mark), ${(0.75 * Math.sqrt((text[place] || 0) / largest)).toFixed(3)})`;
    panel.querySelectorAll(".asked .word").forEach((word, place) => {
      word.style.background = text.length ? tint(place) : "";
      word.title = text.length ? `${quantity()} ${percent(text[place])}` : "";
    });
    const onCell = condition.tokens.map((_, token) => {
      const map = chosen.pinned === null ? null : mapsOf(condition, token);
      return map ? map.cells[chosen.pinned] : 0;
    });
    const most = Math.max(...onCell, 1e-12);
    panel.querySelectorAll("button.word").forEach((word, token) => {
      word.setAttribute("aria-pressed", token === tokenOf(condition));
      word.tabIndex = token === tokenOf(condition) ? 0 : -1;
      word.style.background = text[promptLength + token] ? tint(promptLength + token) : "";
      word.querySelector(".level").style.width = chosen.pinned === null ? "0" : `${(100 * onCell[token]) / most}%`;
      word.dataset.onCell = onCell[token];
    });
    panel.querySelector(".frame").setAttribute("aria-label", describe(name, condition, shown));
  }
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function describe(name, condition, shown) {
  const token = condition.tokens[tokenOf(condition)].text;
  if (!shown) return `No map of this kind for "${token}" (${name}).`;
  const best = shown.cells.reduce((found, value, cell) => (value > shown.cells[found] ? cell : found), 0);
  const { cols } = chosen.view.grid;
  return `${chosen.view.name}, ${name}, "${token}": largest in row ${Math.floor(best / cols)}, column ${best % cols}.`;
}

function drawMatrix() {
  const condition = firstCondition();
  const token = tokenOf(condition);
  const share = (layer, head) => mapAt(condition.shares, layer, head, token)[0];
  let most = 1e-9;
  for (let layer = 0; layer < condition.layers; layer++)
    for (let head = 0; head < condition.heads; head++) most = Math.max(most, share(layer, head));
  for (const button of byId("matrix").querySelectorAll("button")) {
    const [layer, head] = [Number(button.dataset.layer), Number(button.dataset.head)];
    const isMean = button.dataset.head === undefined;
    const pressed = chosen.layer === layer && (isMean ? chosen.source === "mean" : isHead() && chosen.head === head);
    button.setAttribute("aria-pressed", pressed);
    if (isMean) continue;
    const value = share(layer, head);
    button.style.background = `rgb(${colourOf(value / most).join(",")})`;
    button.title = `layer ${layer}, head ${head}: attention on image ${percent(value)}`;
    button.setAttribute("aria-label", button.title);
  }
}

function drawToken() {
  const rows = [];
  for (const [name, condition] of conditionsShown()) {
    const token = tokenOf(condition);
    const { text, probability, alternatives } = condition.tokens[token];
    const shown = mapsOf(condition, token);
    rows.push(make("p", {}, `${name}: "${text}", probability ${probability.toFixed(3)}`));
    if (shown && shown.shares)
      ["image", "prompt", "answer so far"].forEach((group, place) => rows.push(bar(`${quantity()} on ${group}`, shown.shares[place])));
    rows.push(make("p", { className: "small" }, `top-${alternatives.length} next tokens`));
    alternatives.forEach(([other, chance]) => rows.push(bar(other, chance)));
  }
  byId("token").replaceChildren(...rows);
}

function bar(label, share) {
  const fill = make("i");
  fill.style.width = `${100 * share}%`;
  return make("div", { className: "share" }, make("span", {}, label), make("span", { className: "track" }, fill),
    make("span", { className: "number" }, percent(share)));
}

function read() {
  const cell = chosen.cell ?? chosen.pinned;
  const { cols } = chosen.view.grid;
  const kind = { rollout: "rollout mass", mean: `attention, mean of layer ${chosen.layer}`,
    head: `attention, layer ${chosen.layer}, head ${chosen.head}` }[chosen.source] ||
    labelOf(chosen.source) + (isHead() ? ` (layer ${chosen.layer}, head ${chosen.head})` : "");
  const sentences = conditionsShown().map(([name, condition]) => {
    const shown = mapsOf(condition, tokenOf(condition));
    const token = condition.tokens[tokenOf(condition)].text.trim();
    if (!shown) return `${name}: no map of this kind for "${token}".`;
    const whole = () => (shown.shares ? shown.shares[0] : shown.cells.reduce((a, b) => a + b, 0));
    const value = cell === null ? whole() : shown.cells[cell];
    const where = cell === null ? "the whole image" : `row ${Math.floor(cell / cols)}, column ${cell % cols}`;
    return `${name}, "${token}", ${kind}, ${where}: ${value.toPrecision(4)}.`;
  });
  byId("reading").textContent = sentences.join(" ");
}

function draw() {
  drawPanels();
  drawMatrix();
  drawToken();
  read();
}

// ---- Parts of the viewer, built for each sample --------------------------------------------------------------------

function panelOf(name, condition) {
  const { view } = chosen;
  const image = make("img", { src: view.image, alt: `Image of ${view.name}` });
  const side = Math.max(...view.size);
  const frame = make("div", { className: side < 200 ? "frame small-picture" : "frame", tabIndex: 0 }, image, make("canvas"));
  frame.setAttribute("role", "img");
  const scale = 640 / side;
  frame.style.width = `${Math.round(view.size[0] * scale)}px`;
  Object.assign(frame.querySelector("canvas"), { width: view.size[0] * scale * 1.5, height: view.size[1] * scale * 1.5 });
  frame.addEventListener("pointermove", (event) => choose({ cell: cellUnder(frame, event) }));
  frame.addEventListener("pointerleave", () => choose({ cell: null }));
  frame.addEventListener("click", (event) => pin(cellUnder(frame, event)));
  frame.addEventListener("keydown", (event) => moveCell(event));
  const answer = make("div", { className: "words" });
  condition.tokens.forEach(({ text }, token) => {
    const word = make("button", { className: "word", type: "button" }, text.trim() ? text : "␣", make("span", { className: "level" }));
    word.addEventListener("click", () => choose({ token }));
    word.addEventListener("pointerenter", () => hover(token));
    word.addEventListener("pointerleave", () => hover(null));
    word.addEventListener("keydown", (event) => moveToken(event, answer));
    answer.append(word);
  });
  answer.setAttribute("role", "group");
  answer.setAttribute("aria-label", `Words of the answer, ${name}`);
  const asked = make("div", { className: "words asked" });
  asked.setAttribute("aria-label", "Words of the prompt");
  condition.prompt.forEach((text) => asked.append(make("span", { className: "word" }, text || "·")));
  return make("div", { className: "panel" }, make("h3", {}, name), frame, answer, asked);
}

function cellUnder(frame, event) {
  const { rows, cols, left, top, right, bottom } = chosen.view.grid;
  const box = frame.getBoundingClientRect();
  const col = Math.floor((((event.clientX - box.left) / box.width - left) / (right - left)) * cols);
  const row = Math.floor((((event.clientY - box.top) / box.height - top) / (bottom - top)) * rows);
  return row >= 0 && row < rows && col >= 0 && col < cols ? row * cols + col : null;
}

function matrixOf(condition) {
  const table = byId("matrix");
  table.style.setProperty("--side", condition.heads > 16 ? "0.7rem" : "1.5rem");
  const head = make("tr", {}, make("th", {}, ""));
  for (let number = 0; number < condition.heads; number++) head.append(make("th", {}, condition.heads > 16 && number % 4 ? "" : String(number)));
  table.replaceChildren(head);
  for (let layer = condition.layers - 1; layer >= 0; layer--) {
    const label = make("button", { type: "button", title: `mean of layer ${layer}` }, String(layer));
    label.dataset.layer = layer;
    const row = make("tr", {}, make("th", { scope: "row" }, label));
    for (let number = 0; number < condition.heads; number++) {
      const button = make("button", { type: "button", disabled: !(layer in condition.head) });
      Object.assign(button.dataset, { layer, head: number });
      row.append(make("td", {}, button));
    }
    table.append(row);
  }
  const kept = Object.keys(condition.head).length;
  byId("kept").textContent = kept === condition.layers ? "" : `To limit its size, this page holds the single heads of ${kept} of ${condition.layers} layers.`;
}

function sourceNames(view) {
  const filled = (heads) => Object.keys(heads).length > 0;
  const has = (condition, name) => condition[name] && (name !== "head" || filled(condition.head));
  const names = Object.values(view.conditions).flatMap((condition) => {
    const kinds = Object.entries(kindsOf(condition));
    const others = kinds.flatMap(([kind, { head }]) => (filled(head) ? [kind, `${kind}-head`] : [kind]));
    return [...Object.keys(SOURCES).filter((name) => has(condition, name)), ...others];
  });
  return [...new Set(names)];
}

function sourcesOf(view) {
  const options = sourceNames(view).map((name) => {
    const input = make("input", { type: "radio", name: "source", value: name, checked: name === chosen.source });
    input.addEventListener("change", () => choose({ source: name }));
    return make("label", {}, input, ` ${labelOf(name)}`);
  });
  byId("sources").replaceChildren(byId("sources").querySelector("legend"), ...options);
}

function build() {
  byId("panels").replaceChildren(...conditionsShown().map(([name, condition]) => panelOf(name, condition)));
  matrixOf(firstCondition());
  sourcesOf(chosen.view);
  draw();
}

// ---- Events --------------------------------------------------------------------------------------------------------

function choose(change) {
  if (Object.entries(change).every(([key, value]) => chosen[key] === value)) return;
  Object.assign(chosen, change);
  const radio = document.querySelector(`input[name=source][value="${chosen.source}"]`);
  if (radio) radio.checked = true;
  drawPanels();
  read();
  if (Object.keys(change).some((key) => key !== "cell")) {
    drawMatrix();
    drawToken();
  }
}

// Hovering previews a token; leaving it restores the clicked one.
let kept = null;
function hover(token) {
  if (token !== null) {
    kept ??= chosen.token;
    choose({ token });
  } else if (kept !== null) {
    choose({ token: kept });
    kept = null;
  }
}

document.addEventListener("click", () => { kept = kept === null ? null : chosen.token; }, true);

function pin(cell) {
  choose({ pinned: chosen.pinned === cell ? null : cell });
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function moveToken(event, words) {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  kept = null;
  const step = STEPS[event.key][0] + STEPS[event.key][1];
  const token = Math.min(words.children.length - 1, Math.max(0, chosen.token + step));
  choose({ token });
  words.children[token].focus();
}

function moveCell(event) {
  const { rows, cols } = chosen.view.grid;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pin(chosen.cell);
  } else if (event.key in STEPS) {
    event.preventDefault();
    const now = chosen.cell ?? chosen.pinned ?? Math.floor(rows / 2) * cols + Math.floor(cols / 2);
    const col = Math.min(cols - 1, Math.max(0, (now % cols) + STEPS[event.key][0]));
    const row = Math.min(rows - 1, Math.max(0, Math.floor(now / cols) + STEPS[event.key][1]));
    choose({ cell: row * cols + col });
  }
}

function moveHead(event) {
  if (!(event.key in STEPS) || event.target.tagName !== "BUTTON") return;
  event.preventDefault();
  const cell = event.target.closest("td, th");
  const rows = Array.from(byId("matrix").rows);
  const row = rows[Math.max(1, Math.min(rows.length - 1, rows.indexOf(cell.parentNode) + STEPS[event.key][1]))];
  const next = row.cells[Math.max(0, Math.min(row.cells.length - 1, cell.cellIndex + STEPS[event.key][0]))];
  const button = next.querySelector("button:not(:disabled)");
  if (button) {
    button.focus();
    button.click();
  }
}

async function open(index) {
  const view = data.views[index];
  byId("loading").hidden = false;
  const conditions = await unpackAll(view.conditions);
  if (Number(byId("sample").value) !== index) return; // another sample was selected meanwhile
  byId("loading").hidden = true;
  const names = Object.keys(conditions);
  chosen.conditions = [names[0], ...(names.length > 1 ? [names[1]] : [])];
  Object.assign(chosen, { view: { ...view, conditions }, token: 0, layer: firstLayer(conditions[names[0]]), head: 0, cell: null, pinned: null });
  if (!sourceNames({ conditions }).includes(chosen.source)) chosen.source = "rollout";
  byId("prompt").textContent = view.prompt;
  const several = names.length > 1;
  byId("condition-a-label").hidden = byId("condition-b-label").hidden = !several;
  byId("condition-a").replaceChildren(...names.map((name) => new Option(name, name)));
  byId("condition-b").replaceChildren(new Option("none", ""), ...names.map((name) => new Option(name, name)));
  byId("condition-a").value = names[0];
  byId("condition-b").value = several ? names[1] : "";
  byId("viewer").hidden = false;
  build();
}

const firstLayer = (condition) => Number(Object.keys(condition.head).at(-1) ?? condition.layers - 1);

function startViewer() {
  byId("sample").replaceChildren(...data.views.map((view, index) => new Option(view.name, index)));
  byId("sample").addEventListener("change", () => open(Number(byId("sample").value)));
  byId("colours").replaceChildren(...Object.keys(data.colours).map((name) => new Option(name, name)));
  for (const id of ["opacity", "smooth", "colours"]) byId(id).addEventListener("input", draw);
  for (const id of ["condition-a", "condition-b"])
    byId(id).addEventListener("change", () => {
      chosen.conditions = [byId("condition-a").value, byId("condition-b").value].filter((name, place, all) => name && all.indexOf(name) === place);
      build();
    });
  byId("matrix").addEventListener("keydown", moveHead);
  byId("matrix").addEventListener("click", (event) => {
    const { layer, head } = event.target.dataset;
    if (layer === undefined) return;
    const source = isHead() ? chosen.source : "head";
    choose(head === undefined ? { source: "mean", layer: Number(layer) } : { source, layer: Number(layer), head: Number(head) });
  });
  for (const button of document.querySelectorAll("button.open"))
    button.addEventListener("click", () => {
      byId("sample").value = button.dataset.view;
      open(Number(button.dataset.view));
      byId("view").scrollIntoView();
    });
  open(0);
}

// ---- Table ---------------------------------------------------------------------------------------------------------

function sortBy(header) {
  const table = byId("table");
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = (row) => row.cells[column].textContent.trim();
  const rows = Array.from(table.tBodies[0].rows);
  const numeric = rows.every((row) => text(row) === "" || !Number.isNaN(Number(text(row))));
  const order = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  rows.sort((a, b) => {
    const [x, y] = [text(a), text(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // empty cells last, either way
    return down ? order(y, x) : order(x, y);
  });
  table.tBodies[0].append(...rows);
}

for (const header of document.querySelectorAll("#table th[aria-sort]"))
  header.querySelector("button").addEventListener("click", () => sortBy(header));
for (const button of document.querySelectorAll("button.enlarge"))
  button.addEventListener("click", () => button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") !== "true"));
if (data.views.length) startViewer();
