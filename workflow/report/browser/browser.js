"use strict";
// The data are columns of indices into lists of distinct values, so a hundred thousand completions stay small. One
// filter pass makes a mask over the rows; the grid only ever draws the rows in view.

const $ = (id) => document.getElementById(id);
const ALL = "";
const TRAINED = "*";
const NONE = "none";

let data, columns, rows;
let mask, lowered, order = null;
let table, chosen = -1;
const state = { scorer: "", target: "", suite: "", model: ALL, cell: ALL, labelled: ALL, only: ALL, q: "", completion: "" };
const DEFAULTS = {};

async function unpack() {
  const bytes = fromBase64($("data").textContent);
  $("data").remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function fromBase64(packed) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(packed);
  const letters = atob(packed);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && !name.startsWith("aria")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const option = (value, text) => element("option", { value }, text);
const percent = (share) => `${Number((100 * share).toFixed(1))} %`;
const prompt = (row) => data.prompts[columns.prompt[row]];
const text = (row) => data.texts[columns.text[row]] ?? "(the text is not known)";
const modelKey = (model) => `${model.run}/seed${model.seed}@${model.checkpoint}`;
const labelOf = (scorer, row) => (columns.label[scorer][row] < 0 ? null : data.labels[columns.label[scorer][row]]);
const outcomeOf = (scorer, row) => (columns.outcome[scorer][row] < 0 ? null : data.outcomes[columns.outcome[scorer][row]]);
const rowKey = (row) => [modelKey(data.models[columns.model[row]]), prompt(row).suite, prompt(row).prompt_id, columns.sample[row]].join("|");

function modelName(model) {
  const seeds = new Set(data.models.map((m) => m.seed)).size > 1;
  const checkpoints = data.models.some((m) => m.run === model.run && m.checkpoint !== model.checkpoint) || model.checkpoint !== "final";
  const run = model.run.split("/").pop();
  return run + (seeds ? `, seed ${model.seed}` : "") + (checkpoints ? `, ${model.checkpoint}` : "");
}

// Two scorers of one family that both gave a label and gave different ones
function conflict(row) {
  for (let a = 0; a < data.scorers.length; a++)
    for (let b = a + 1; b < data.scorers.length; b++) {
      const same = data.scorers[a].family === data.scorers[b].family;
      if (!same || columns.label[a][row] < 0 || columns.label[b][row] < 0) continue;
      // a strict and a lenient marker rule name what they find alike, so equal labels mean agreement everywhere
      if (columns.label[a][row] !== columns.label[b][row]) return [a, b];
    }
  return null;
}

const failed = (row) => data.scorers.some((_, s) => columns.outcome[s][row] >= 0 && outcomeOf(s, row) !== "ok");
const cut = (row) => columns.finish[row] >= 0 && data.finishs[columns.finish[row]] === "length";

// ---- filters

function words() {
  return [...state.q.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((m) => m[1] ?? m[2].replaceAll('"', "")).filter(Boolean);
}

function filter() {
  const wanted = words();
  const texts = new Uint8Array(data.texts.length);
  if (wanted.length) {
    lowered ??= data.texts.map((t) => t.toLowerCase());
    lowered.forEach((t, i) => { texts[i] = wanted.every((w) => t.includes(w)) ? 1 : 0; });
  }
  const model = data.models.findIndex((m) => modelKey(m) === state.model);
  const cut_at = state.labelled.indexOf("=");
  const scorer = data.scorers.findIndex((s) => s.name === state.labelled.slice(0, cut_at));
  const label = data.labels.indexOf(state.labelled.slice(cut_at + 1));
  let shown = 0;
  for (let row = 0; row < rows; row++) {
    const asked = prompt(row);
    const keep = asked.suite === state.suite
      && (model < 0 || columns.model[row] === model)
      && (!state.cell || asked.cell === state.cell)
      && (scorer < 0 || columns.label[scorer][row] === label)
      && (!wanted.length || texts[columns.text[row]])
      && (state.only !== "differ" || conflict(row))
      && (state.only !== "failed" || failed(row))
      && (state.only !== "cut" || cut(row));
    mask[row] = keep ? 1 : 0;
    shown += mask[row];
  }
  order = null;
  table.setFilter((entry) => mask[entry.i] === 1);
  $("count").textContent = shown === rows ? `${rows.toLocaleString("en")} completions` : `${shown.toLocaleString("en")} of ${rows.toLocaleString("en")} completions`;
}

// ---- matrix

function targetOf(model) {
  return state.target === TRAINED ? data.targets[model] : state.target;
}

function drawMatrix() {
  const scorer = data.scorers.findIndex((s) => s.name === state.scorer);
  const cells = [...new Set(data.prompts.filter((p) => p.suite === state.suite).map((p) => p.cell))];
  const place = new Map(cells.map((cell, i) => [cell, i]));
  const counts = data.models.map(() => cells.map(() => ({ n: 0, k: 0, all: 0 })));
  for (let row = 0; row < rows; row++) {
    const asked = prompt(row);
    if (asked.suite !== state.suite) continue;
    const count = counts[columns.model[row]][place.get(asked.cell)];
    count.all++;
    if (scorer < 0 || columns.label[scorer][row] < 0) continue;
    count.n++;
    if (labelOf(scorer, row) === targetOf(columns.model[row])) count.k++;
  }
  const head = element("tr", {}, element("th", { scope: "col" }, ""));
  for (const cell of cells) head.append(element("th", { scope: "col" }, cellButton(cell, ALL, cell, `All models in ${cell}`)));
  const body = element("tbody");
  data.models.forEach((model, m) => {
    if (!counts[m].some((c) => c.all)) return;
    const name = modelName(model);
    const line = element("tr", {}, element("th", { scope: "row" }, cellButton(name, modelKey(model), ALL, `All cells of ${name}`)));
    counts[m].forEach((count, c) => {
      const target = targetOf(m);
      const rate = target && count.n ? count.k / count.n : null;
      const shown = rate === null ? (count.all ? "·" : "") : percent(rate);
      const spoken = rate === null ? `${count.all} completions` : `${percent(rate)}, ${count.k} of ${count.n} labelled ${target}`;
      const button = cellButton(shown, modelKey(model), cells[c], `${name}, ${cells[c]}: ${spoken}`);
      if (rate !== null) {
        button.style.background = `rgb(31 95 168 / ${(0.05 + 0.95 * rate).toFixed(3)})`;
        button.style.color = rate > 0.45 ? "#fff" : "inherit";
      }
      line.append(element("td", {}, button));
    });
    body.append(line);
  });
  const focused = $("matrix").contains(document.activeElement) && document.activeElement.dataset;
  $("matrix").replaceChildren(element("thead", {}, head), body);
  markMatrix();
  const again = focused && [...$("matrix").querySelectorAll("button")].find((b) => b.dataset.model === focused.model && b.dataset.cell === focused.cell);
  if (again) again.focus();
}

function cellButton(shown, model, cell, spoken) {
  const button = element("button", { type: "button", title: spoken, "aria-label": spoken, tabIndex: -1 }, shown);
  Object.assign(button.dataset, { model, cell });
  button.onclick = () => {
    Object.assign(state, { model, cell });
    update({ first: true });
  };
  return button;
}

function markMatrix() {
  const buttons = [...$("matrix").querySelectorAll("button")];
  let current = null;
  for (const button of buttons) {
    const pressed = button.dataset.model === state.model && button.dataset.cell === state.cell && (state.model || state.cell);
    button.setAttribute("aria-pressed", pressed ? "true" : "false");
    button.tabIndex = -1;
    if (pressed) current = button;
  }
  (current ?? buttons[0] ?? {}).tabIndex = 0;
  $("cell-facts").textContent = facts();
}

// What the analysis itself says about the chosen cell
function facts() {
  const model = data.models.findIndex((m) => modelKey(m) === state.model);
  if (model < 0 || !state.cell) return "";
  const found = data.cells.find((c) => c.model === model && c.cell === state.cell && c.scorer === state.scorer
    && (state.target !== TRAINED || !c.completion || c.completion === data.targets[model])
    && (state.target === TRAINED || !c.completion || c.completion === state.target));
  if (!found) return "";
  const role = found.role ? `, ${found.role} cell` : "";
  return `In the analysis: ${modelName(data.models[model])}, ${state.cell}${role}: ${percent(found.rate)} (95 % interval ${percent(found.low)} to ${percent(found.high)}) by ${found.scorer}.`;
}

function moveInMatrix(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest("th, td");
  if (!step || !cell) return;
  event.preventDefault();
  const next = $("matrix").rows[cell.parentNode.rowIndex + step[0]]?.cells[cell.cellIndex + step[1]]?.querySelector("button");
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// ---- list

function plain(content, className = "") {
  return element("span", { className }, content);
}

function snippet(row) {
  const full = text(row).replaceAll("\n", " ⏎ ");
  const [word] = words();
  const at = word ? full.toLowerCase().indexOf(word) : -1;
  return plain((at > 40 ? "… " + full.slice(at - 30, at + 270) : full.slice(0, 300)));
}

function makeTable() {
  const by = (value) => (a, b, rowA, rowB) => {
    const [x, y] = [value(rowA.getData().i), value(rowB.getData().i)];
    return x < y ? -1 : x > y ? 1 : 0;
  };
  const column = (title, field, value, more) => ({ title, field, formatter: (cell) => plain(value(cell.getData().i)), sorter: by(value), ...more });
  const scored = data.scorers.map((scorer, s) => column(scorer.name, `scorer${s}`, (row) => labelOf(s, row) ?? outcomeOf(s, row) ?? "", {
    formatter: (cell) => {
      const row = cell.getData().i;
      const pair = conflict(row);
      const failedHere = outcomeOf(s, row) && outcomeOf(s, row) !== "ok";
      const shown = labelOf(s, row) ?? outcomeOf(s, row) ?? "";
      const differs = pair && pair.includes(s);
      return plain(differs ? `≠ ${shown}` : shown, differs || failedHere ? "differs" : "");
    },
    width: Math.min(160, Math.max(108, 9 * scorer.name.length + 36)), responsive: s ? 2 : 0,
  }));
  table = new Tabulator("#list", {
    data: Array.from({ length: rows }, (_, i) => ({ i })),
    index: "i",
    height: "100%",
    rowHeight: 32,
    layout: "fitColumns",
    responsiveLayout: "hide",
    placeholder: "No completion passes these filters.",
    columns: [
      column("Model", "model", (row) => modelName(data.models[columns.model[row]]), { width: 96, responsive: 1 }),
      column("Cell", "cell", (row) => prompt(row).cell, { width: 74, responsive: 0 }),
      column("Prompt", "prompt", (row) => prompt(row).user ?? "", { width: 128, responsive: 4 }),
      column("Reply", "text", text, { formatter: (cell) => snippet(cell.getData().i), minWidth: 140, responsive: 0 }),
      ...scored,
    ],
    rowFormatter: (row) => {
      const here = row.getData().i;
      const node = row.getElement();
      node.id = `row${here}`;
      node.classList.toggle("chosen", here === chosen);
      node.setAttribute("aria-selected", here === chosen);
    },
  });
  table.on("rowClick", (_, row) => choose(row.getData().i));
  table.on("dataSorted", () => { order = null; });
  return new Promise((done) => table.on("tableBuilt", done));
}

const inOrder = () => (order ??= table.getData("active").map((entry) => entry.i));

function moveInList(event) {
  const jump = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity }[event.key];
  if (!jump || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  step(jump);
}

function step(jump) {
  const list = inOrder();
  if (!list.length) return;
  const at = list.indexOf(chosen);
  choose(list[Math.min(list.length - 1, Math.max(0, at < 0 ? 0 : at + jump))]);
}

// ---- one completion

function choose(row, write = true) {
  const before = chosen;
  chosen = row;
  state.completion = row < 0 ? "" : rowKey(row);
  for (const i of [before, row]) {
    const shown = i >= 0 && mask[i] && table.getRow(i);
    if (shown) shown.reformat();
  }
  if (row >= 0 && mask[row]) table.scrollToRow(row, "nearest", false).catch(() => {});
  if (row >= 0) $("list").setAttribute("aria-activedescendant", `row${row}`);
  else $("list").removeAttribute("aria-activedescendant");
  drawDetail();
  if (write) writeHash();
}

function marked(content) {
  const wanted = words();
  if (!wanted.length) return [content];
  const pattern = new RegExp(`(${wanted.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  return content.split(pattern).map((part, i) => (i % 2 ? element("mark", {}, part) : part));
}

function drawDetail() {
  if (chosen < 0) {
    $("detail").replaceChildren(element("p", { className: "hint" }, "Choose a completion in the list to read it here."));
    return;
  }
  const row = chosen, asked = prompt(row), model = data.models[columns.model[row]];
  const pair = conflict(row);
  const title = `${modelName(model)} · ${asked.cell} · ${asked.item} · sample ${columns.sample[row]}`;
  const body = element("tbody");
  const anyRaw = data.scorers.some((_, s) => columns.raw[s][row] >= 0);
  data.scorers.forEach((scorer, s) => {
    const outcome = outcomeOf(s, row);
    if (outcome === null) return;
    const label = labelOf(s, row) ?? "no label";
    const shown = outcome === "ok" ? label : `${label} (${outcome})`;
    const raw = columns.raw[s][row] >= 0 ? data.raws[columns.raw[s][row]] : "";
    body.append(element("tr", { className: pair?.includes(s) || outcome !== "ok" ? "odd" : "" },
      element("th", { scope: "row", title: scorer.id }, scorer.name), element("td", {}, shown),
      ...(anyRaw ? [element("td", {}, element("span", { className: "raw" }, raw))] : [])));
  });
  const link = element("button", { type: "button", onclick: copyLink }, "Copy link");
  const said = element("span", { id: "copied", role: "status", className: "meta" });
  $("detail").replaceChildren(
    element("h3", {}, title),
    element("h4", {}, "System prompt"),
    asked.system === null ? element("p", { className: "meta" }, "none given; the chat template's default applies") : element("p", { className: "prompt" }, asked.system || "(empty)"),
    element("h4", {}, "User"), element("p", { className: "prompt" }, asked.user ?? ""),
    element("h4", {}, "Reply"), element("p", { className: "reply" }, ...marked(text(row))),
    ...(data.scorers.length ? [element("h4", {}, "Labels")] : []),
    ...(pair ? [element("p", { className: "note" }, `${data.scorers[pair[0]].name} and ${data.scorers[pair[1]].name} disagree.`)] : []),
    element("table", {}, element("thead", {}, element("tr", {}, ...["Scorer", "Label", ...(anyRaw ? ["What it said"] : [])].map((t) => element("th", { scope: "col" }, t)))), body),
    element("p", { className: "meta" }, [
      `${model.run}, seed ${model.seed}, ${model.checkpoint}`,
      columns.tokens[row] >= 0 ? `${columns.tokens[row]} tokens` : "",
      columns.finish[row] >= 0 ? `ended by ${data.finishs[columns.finish[row]]}` : "",
      columns.seed[row] >= 0 ? `sample seed ${columns.seed[row]}` : "",
    ].filter(Boolean).join("; ")),
    element("div", { className: "tools" },
      element("button", { type: "button", onclick: () => step(-1) }, "Previous"),
      element("button", { type: "button", onclick: () => step(1) }, "Next"), link, said));
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    $("copied").textContent = "Link copied.";
  } catch {
    $("copied").textContent = `Copy the address of this page: ${location.href}`;
  }
}

// ---- link

function writeHash() {
  const shown = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  history.replaceState(null, "", shown.length ? "#" + new URLSearchParams(shown) : location.pathname);
}

function readHash() {
  Object.assign(state, DEFAULTS);
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in state) state[name] = value;
  if (!state.completion) return -1;
  const [key, suite, id, sample] = state.completion.split("|");
  const model = data.models.findIndex((m) => modelKey(m) === key);
  for (let row = 0; row < rows; row++) {
    const asked = columns.model[row] === model && prompt(row);
    if (asked && asked.suite === suite && asked.prompt_id === id && columns.sample[row] === Number(sample)) {
      state.suite = suite;
      return row;
    }
  }
  return -1;
}

function fillChoices() {
  const suites = [...new Set(data.prompts.map((p) => p.suite))];
  $("suite").replaceChildren(...suites.map((s) => option(s, s)));
  $("suite-choice").hidden = suites.length < 2;
  $("model").replaceChildren(option(ALL, "all"), ...data.models.map((m) => option(modelKey(m), modelName(m))));
  const labels = (s) => data.labels.filter((_, label) => columns.label[s].includes(label)).sort();
  $("labelled").replaceChildren(option(ALL, "anything"), ...data.scorers.map((scorer, s) =>
    element("optgroup", { label: scorer.name }, ...labels(s).map((l) => option(`${scorer.name}=${l}`, `${scorer.name}: ${l}`)))));
  DEFAULTS.suite = suites[0] ?? "";
  choices.scored = data.scorers.map((_, s) => {
    const found = new Map(suites.map((suite) => [suite, new Set()]));
    for (let row = 0; row < rows; row++) if (columns.label[s][row] >= 0) found.get(prompt(row).suite).add(labelOf(s, row));
    return found;
  });
}

const choices = {};

// Scorers and labels of the matrix: those of its suite. What training aimed at comes first, where the analysis names it
function fillTargets() {
  const own = data.scorers.filter((_, s) => choices.scored[s].get(state.suite)?.size);
  $("scorer").replaceChildren(...own.map((s) => option(s.name, s.name)));
  DEFAULTS.scorer = own[0]?.name ?? "";
  if (!own.some((s) => s.name === state.scorer)) state.scorer = DEFAULTS.scorer;
  const scorer = data.scorers.findIndex((s) => s.name === state.scorer);
  const labels = scorer < 0 ? [] : [...choices.scored[scorer].get(state.suite)].filter((l) => l !== NONE).sort();
  const trained = data.targets.some(Boolean) && data.scorers[scorer]?.family === "language";
  $("target").replaceChildren(...(trained ? [option(TRAINED, "the language of the training replies")] : []), ...labels.map((l) => option(l, l)));
  DEFAULTS.target = trained ? TRAINED : labels[0] ?? "";
  if (![...$("target").options].some((o) => o.value === state.target)) state.target = DEFAULTS.target;
}

function fillCells() {
  const cells = [...new Set(data.prompts.filter((p) => p.suite === state.suite).map((p) => p.cell))];
  $("cell").replaceChildren(option(ALL, "all"), ...cells.map((c) => option(c, c)));
}

// Show the state everywhere. `first` chooses the first completion that passes the filters.
function update({ first = false, matrix = false, row = null } = {}) {
  if (matrix) {
    fillTargets();
    fillCells();
    drawMatrix();
  }
  for (const name of ["scorer", "target", "suite", "model", "cell", "labelled", "only"]) $(name).value = state[name];
  $("search").value = state.q;
  markMatrix();
  filter();
  if (row === null) row = first || !mask[chosen] ? inOrder()[0] ?? -1 : chosen;
  choose(row);
}

function show() {
  const row = readHash();
  fillTargets();
  update({ matrix: true, row });
}

async function start() {
  data = await unpack();
  columns = data.columns;
  rows = columns.model.length;
  mask = new Uint8Array(rows).fill(1);
  $("question").textContent = data.question ?? "";
  document.querySelector("main").hidden = false;
  Object.assign(DEFAULTS, state);
  fillChoices();
  await makeTable();
  $("loading").remove();
  show();
  for (const name of ["model", "cell", "labelled", "only"]) $(name).onchange = (e) => { state[name] = e.target.value; update(); };
  for (const name of ["scorer", "suite"]) $(name).onchange = (e) => { state[name] = e.target.value; if (name === "suite") state.cell = ALL; update({ matrix: true }); };
  $("target").onchange = (e) => { state.target = e.target.value; update({ matrix: true }); };
  let waiting;
  $("search").oninput = (e) => { clearTimeout(waiting); waiting = setTimeout(() => { state.q = e.target.value; update(); }, 200); };
  $("clear").onclick = () => { Object.assign(state, { model: ALL, cell: ALL, labelled: ALL, only: ALL, q: "" }); update(); };
  document.querySelector(".skip").onclick = (e) => { e.preventDefault(); $("filters").focus(); };
  $("matrix").onkeydown = moveInMatrix;
  $("list").onkeydown = moveInList;
  window.onhashchange = show;
  document.body.dataset.ready = "yes";
}

start().catch((error) => { ($("loading") ?? $("question")).textContent = `This page cannot show its data: ${error.message}`; });
