// The page as a whole: where the reader is, how it is drawn, and what keys do.

let at; // { state, stop, flat }
let remembered = {}; // the last value of every index letter, so that a walk from line to line keeps its cell
let trail = []; // the addresses that the reader jumped from, in order
const display = { numbers: true, differences: true };
let drawn = ""; // what the tables show now, to know when they must be drawn anew

// Moving.

function move(place, how) {
  at = place;
  moved = null;
  if (how !== "silent") openAbout(false);
  remembered = { ...remembered, ...indicesAt(place.stop, place.flat) };
  const address = "#" + addressOf(place);
  if (how !== "silent") setAddress(address, how === "jump");
  render();
  if (how !== "silent") say(cellSentence(place));
}

// Browsers refuse hundreds of addresses in a few seconds, as when a key is held down. Then the URL lags behind, and the page does not.
function setAddress(address, isNew) {
  try {
    if (isNew) history.pushState({ trail }, "", address);
    else history.replaceState({ trail }, "", address);
  } catch (error) {
    console.info(error.message);
  }
}

// Go to a place that the reader can come back from.
function jump(place) {
  trail = [...trail, addressOf(at)];
  move(place, "jump");
  closeDrawer();
  const top = byId("line").getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) byId("line").scrollIntoView();
}

function goBack(steps = 1) {
  if (trail.length) history.go(-steps);
  else say("You have not jumped from anywhere.", true);
}

// Go where the address in the URL says.
function arrive() {
  trail = history.state?.trail ?? [];
  const address = location.hash.slice(1);
  openAbout(!address);
  if (!address) return move(startPlace(), "silent");
  const { missing, ...place } = placeOf(address, startPlace());
  move(place, "silent");
  if (missing.length) {
    say(`This page has no ${missing.join(" and no ")}. The nearest place is shown: ${addressOf(place)}.`, true);
    setAddress("#" + addressOf(place), false);
  } else say(cellSentence(place));
}

function walk(steps) {
  const stop = stops[at.stop.order + steps];
  if (!stop) return say(steps > 0 ? "This is the last line of backward." : "This is the first line of forward.", true);
  move({ ...at, stop, flat: cellNear(stop, remembered) }, "walk");
}

function goToPair() {
  const stop = otherSide(at.stop);
  if (!stop) return say("This line has no other side.", true);
  jump({ ...at, stop, flat: sameCell(at, stop, remembered) });
}

function choose(flat) {
  if (flat !== at.flat) move({ ...at, flat }, "walk");
}

function changeState(state) {
  if (data.states[state] && state !== at.state) move({ ...at, state }, "walk");
}

function turnHead(head) {
  const shape = shapeOf(at.stop.array);
  const axis = data.arrays[at.stop.array].axes.indexOf("head");
  if (axis >= 0 && head < shape[axis]) choose(ravel(unravel(at.flat, shape).with(axis, head), shape));
}

function startPlace() {
  const stop = stops.find((one) => kindOf(one) === "attention_backward/dscores") ?? stops[0];
  return { state: data.states.length - 1, stop, flat: cellNear(stop, { h: 1, t: 3, s: 3 }) };
}

// Saying.

function say(text, visibly = false) {
  byId("live").textContent = text;
  byId("live").classList.toggle("visible", visibly);
}

function cellSentence(place) {
  const x = valueAt(place);
  const where = [place.stop.formula.name, cellWords(place.stop.array, place.flat, "say")].filter(Boolean).join(", ");
  return isHidden(place) ? `${where}: hidden until you have said its sign` : `${where}: ${format(x)}, ${signOf(x)}`;
}

// Drawing.

function render() {
  const { state, stop, flat } = at;
  const reads = readsOf(stop, state, flat);
  const tables = [made(), ...namesRead(stop).map((name) => readTable(name, reads))];
  const key = JSON.stringify([state, stop.order, tables.map((table) => table.slice)]);
  const focused = focusNow();
  if (key !== drawn) drawTables(tables);
  drawn = key;
  markTables(tables, reads);
  byId("cell").replaceChildren(...drawCell(at).filter(Boolean));
  letScroll(".math", "Formula");
  drawTop();
  drawBar();
  drawTrail();
  markTape(at);
  if (focused && document.activeElement === document.body) document.querySelector(focused)?.focus({ preventScroll: true });
}

// A selector of what has the focus, or of what should have it when that is drawn anew: a button by its name, the code, or else the
// selected cell.
function focusNow() {
  const element = document.activeElement?.closest("#page, header") && document.activeElement;
  if (!element) return null;
  for (const name of ["data-key", "data-switch", "data-state", "data-turn", "data-handle"]) {
    if (element.hasAttribute(name)) return `[${name}="${element.getAttribute(name)}"]`;
  }
  return element.closest("#code") ? "#code" : "#line td.selected";
}

function made() {
  const { state, stop, flat } = at;
  const slice = sliceOf(stop.array, flat);
  const turn = (to) => choose(flat + (to - slice) * (sizeOf(stop.array) / leadingSize(stop.array)));
  const sums = /each row sums to/i.test(stop.formula.means);
  return { array: stop.array, name: stop.formula.name, state, slice, choose, turn, sums };
}

function leadingSize(array) {
  return shapeOf(array).slice(0, -2).reduce((size, length) => size * length, 1);
}

function readTable(name, reads) {
  const array = at.stop.arrays[name];
  const source = at.stop.sources.get(name);
  const slice = sliceOf(array, reads.find((read) => read.name === name)?.flat ?? 0);
  const table = { array, name, state: at.state, slice, from: source ? `from ${source.address}` : originOf(array) };
  table.follow = (flat) => (source ? jump({ ...at, stop: source, flat }) : say(`${name} is ${originOf(array)}.`, true));
  table.choose = (flat) => say(`${name}, ${cellWords(array, flat, "say")}: ${format(numbersOf(at.state, array)[flat])}`);
  table.turn = (to) => {
    const redrawn = drawTable({ ...table, slice: to });
    document.querySelectorAll("#reads figure")[namesRead(at.stop).indexOf(name)].replaceWith(redrawn);
    markTable(redrawn.querySelector("table"), null, litIn(array, reads));
    redrawn.querySelector("[aria-pressed=true]").focus();
    drawn = "";
  };
  return table;
}

function drawTables([madeTable, ...readTables]) {
  byId("line").replaceChildren(...drawLine(at).filter(Boolean), drawTable(madeTable));
  byId("reads").replaceChildren(make("h2", { id: "reads-title" }, "Read from"), ...readTables.map(drawTable));
  const current = document.querySelector("#code .current");
  if (current) byId("code").scrollTop = current.offsetTop - byId("code").clientHeight / 2;
}

function markTables([madeTable, ...readTables], reads) {
  const table = document.querySelector("#line table");
  const cell = markTable(table, at.flat, new Set());
  const before = table.querySelector(".hidden");
  before?.classList.remove("hidden");
  before?.replaceChildren(format(numbersOf(at.state, at.stop.array)[before.dataset.i]));
  cell.classList.toggle("hidden", isHidden(at));
  if (isHidden(at)) cell.textContent = "?";
  if (document.activeElement?.closest("#line td[data-i]")) cell.focus({ preventScroll: true });
  keepInBox(cell);
  showPlane(at);
  document.querySelectorAll("#reads table").forEach((one, i) => {
    keepInBox(markTable(one, null, litIn(readTables[i].array, reads)));
  });
}

function litIn(array, reads) {
  return new Set(reads.filter((read) => read.array === array).map((read) => read.flat));
}

function drawBar() {
  const { stop } = at;
  const where = make("span", { class: "place" }, callOf(stop).name, " ", make("span", {}, `${stop.place + 1}/${stop.of}`));
  const button = (name, text, hint, act) => make("button", { "data-key": name, "title": hint, "click": act }, text);
  byId("bar").replaceChildren(
    button("previous", "‹ previous", "previous line (k)", () => walk(-1)), where,
    button("next", "next ›", "next line (j)", () => walk(1)),
    button("pair", stop.backward ? "its forward" : "its backward", "the other side (x)", goToPair),
    button("back", "back", "back to where you jumped from (Backspace)", () => goBack()));
  document.querySelector("[data-key=back]").disabled = !trail.length;
}

// The last places that the reader jumped from, oldest first.
function drawTrail() {
  const last = trail.slice(-4);
  const buttons = last.map((address, i) => {
    const text = address.split("/").slice(1).join(" ");
    return make("li", {}, make("button", { title: address, click: () => goBack(last.length - i) }, text));
  });
  byId("trail").hidden = !last.length;
  byId("trail").replaceChildren(make("span", {}, "you came from"), make("ol", {}, buttons));
}

function drawTop() {
  const { text, states } = data;
  const marked = (part) => [...part].map(showCharacter).join("");
  byId("run").textContent = `${marked(text.slice(0, -1))} → ${marked(text.slice(1))}`;
  drawSwitches();
  byId("states").replaceChildren(...states.map((state, i) => {
    const text = `${state.step ? `after ${state.step} steps` : "before"}: loss ${format(state.loss)}`;
    return make("button", { "data-state": i, "aria-pressed": String(i === at.state), "click": () => changeState(i) }, text);
  }));
}

// What can be switched on and off: [key, text, how it is now, how it is changed].
const SWITCHES = {
  numbers: ["s", "numbers", () => display.numbers, () => (display.numbers = !display.numbers)],
  differences: ["f", "differences", () => display.differences, () => (display.differences = !display.differences)],
  predict: ["p", "predict", () => predict.on, () => (predict.on = !predict.on)],
};

function toggle(name) {
  const [, text, isOn, change] = SWITCHES[name];
  change();
  render();
  say(`${text}: ${isOn() ? "on" : "off"}`);
}

function drawSwitches() {
  const buttons = Object.entries(SWITCHES).map(([name, [letter, text, isOn]]) =>
    make("button", { "data-switch": name, "aria-pressed": String(isOn()), "click": () => toggle(name) }, text, " ", key(letter)));
  byId("switches").replaceChildren(...buttons, make("button", { click: KEYS["?"] }, "keys ", key("?")));
}

// Keys.

const KEYS = {
  "j": () => walk(1),
  "k": () => walk(-1),
  "x": goToPair,
  "[": () => changeState(at.state - 1),
  "]": () => changeState(at.state + 1),
  "Backspace": () => goBack(),
  "s": () => toggle("numbers"),
  "f": () => toggle("differences"),
  "p": () => toggle("predict"),
  "?": () => byId("help").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable], dialog")) return;
  const inCode = event.target.closest("#code");
  const act = inCode && event.key === "ArrowDown" ? KEYS.j : inCode && event.key === "ArrowUp" ? KEYS.k : KEYS[event.key];
  if (act) act();
  else if (/^[1-9]$/.test(event.key)) turnHead(Number(event.key) - 1);
  else return;
  event.preventDefault();
}

// A link to a place is a jump, unless it is opened elsewhere.
function onClick(event) {
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const { missing, ...place } = placeOf(link.hash, at);
  jump(place);
}

// What tests and other scripts may ask. An address is that of a cell; its leading # may be left out.
function openToScripts() {
  const asked = (address) => placeOf(address, at);
  window.trace = {
    stops: stops.map((stop) => stop.address),
    go: (address) => {
      const { missing, ...place } = asked(address);
      jump(place);
    },
    address: () => addressOf(at),
    value: (address) => valueAt(asked(address)),
    evaluate: (address) => evaluateStop(asked(address).stop, asked(address).state, asked(address).flat),
    reads: (address) => readsOf(asked(address).stop, asked(address).state, asked(address).flat)
      .filter((read) => !read.decides).map(({ array, flat }) => [array, flat]),
  };
}

async function start() {
  if (!("DecompressionStream" in window)) {
    byId("failed").textContent = "This page needs a browser of 2023 or later: it unpacks its numbers with DecompressionStream.";
    byId("failed").hidden = false;
    return;
  }
  await unpack();
  findStops();
  byId("page").hidden = false;
  drawTape();
  addEventListener("popstate", arrive);
  addEventListener("keydown", onKey);
  addEventListener("click", onClick);
  drawAbout();
  drawHelp();
  arrive();
  openToScripts();
  document.documentElement.dataset.ready = "yes";
}

start();
