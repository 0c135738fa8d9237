// Why: what one cell is, what it was made from, and what it went into.

const MOST_SHOWN = 12;

function drawCell(place) {
  const { state, stop, flat } = place;
  const x = numbersOf(state, stop.array)[flat];
  const words = cellWords(stop.array, flat);
  const title = make("h2", { id: "cell-title" }, make("code", {}, stop.formula.name), words && make("small", {}, words));
  if (isHidden(place)) return [title, askSign(place), drawFormula(stop), drawDerivation(stop)];
  return [
    title,
    make("p", { class: "value" }, make("span", { "data-role": "value" }, format(x)), " ", make("span", { class: "sign" }, signOf(x))),
    answered(place),
    drawDifference(place),
    drawFormula(stop),
    drawNumbers(place),
    drawDerivation(stop),
    drawTwice(place),
    drawOtherSide(place),
    drawSources(place),
    drawUses(place),
  ];
}

function drawFormula(stop) {
  return make("div", {},
    make("h3", {}, "The formula of this line"),
    make("div", { class: "scroll math", "data-role": "formula" }, formulaWithNames(stop)),
    make("p", { "data-role": "means" }, meaning(stop)));
}

function drawNumbers({ state, stop, flat }) {
  if (!display.numbers) return null;
  return make("div", { class: "substituted" },
    make("h3", {}, "With the numbers of this cell"),
    make("div", { class: "scroll math", "data-role": "substituted" }, formulaWithNumbers(stop, state, flat)));
}

// The finite difference beside a gradient.
function drawDifference({ state, stop, flat }) {
  const found = display.differences && differenceAt(stop, state, flat);
  if (!found) return null;
  const x = numbersOf(state, stop.array)[flat];
  const apart = found.apart === 0 ? "0" : found.apart.toExponential(0);
  const [backward, differences] = [x, found.value].map((value) => make("b", {}, formatLong(value)));
  return make("p", { "class": "difference", "data-role": "difference" },
    backward, " by backward, ", differences, ` by differences, apart ${apart}`);
}

// A line that only moves a gradient shows the difference of the one that it moved.
function differenceAt(stop, state, flat) {
  const found = differenceOf(state, stop.array, flat);
  if (found || !stop.formula.moves) return found;
  const [read] = readsOf(stop, state, flat);
  const source = stop.sources.get(read.name);
  return source && differenceAt(source, state, read.flat);
}

function drawDerivation(stop) {
  const steps = functionOf(stop).derivation;
  if (!steps.length) {
    return make("div", {}, make("h3", {}, "What the function computes"), make("p", {}, make("code", {}, functionOf(stop).says)));
  }
  const items = steps.map(([number, text]) => {
    const current = stop.steps.includes(Number(number));
    const marks = { "class": current ? "current" : null, "aria-current": current ? "step" : null };
    return make("li", { value: number, ...marks }, derivationText(text));
  });
  return make("div", {}, make("h3", {}, "Derivation"), make("ol", { class: "derivation" }, items));
}

function meaning({ formula }) {
  if (formula.means) return upperFirst(formula.means) + ".";
  return formula.moves ? "The same numbers, in another place." : "";
}

// A step is prose and formulas. The docstring sets formulas apart by two spaces or more.
function derivationText(text) {
  return text.split("\n").flatMap(derivationLine);
}

function derivationLine(line) {
  const [first, ...rest] = line.split(/\s{2,}/);
  if (rest[0]?.startsWith("=")) return [make("code", {}, [first, ...rest].join(" "))];
  const formulas = rest.some((part) => part.startsWith("=")) ? [rest.join(" ")] : rest;
  return [make("span", {}, first), ...formulas.map((formula) => make("code", {}, formula))];
}

function upperFirst(text) {
  const startsWithCode = /^(\w+[[(]|\w\b(?!t))/.test(text) && !text.startsWith("a ");
  return startsWithCode ? text : text[0].toUpperCase() + text.slice(1);
}

// "Its gradients add": where a value is used twice.
function drawTwice(place) {
  const twice = twiceUsed(place.stop);
  if (!twice) return null;
  const { add, value, uses } = twice;
  const cell = indicesAt(place.stop, place.flat);
  const link = (stop) => linkTo({ ...place, stop, flat: sameCell(place, stop, cell) }, stop.address);
  const users = uses.flatMap((use, i) => [i ? (i === uses.length - 1 ? " and " : ", ") : "", link(use)]);
  return make("p", { class: "twice" },
    make("b", {}, "Used twice; its gradients add. "), link(value), ` enters ${uses.length} calls, at `, users,
    `, so ${uses.length} gradients come back, and `, link(add), " adds them. ", addPlaces(place));
}

// At how many values of the model gradients are added, with a link to each.
function addPlaces(place) {
  const adds = stops.filter((stop) => callOf(stop).function === "add");
  const links = adds.map((stop) => [" ", linkTo({ ...place, stop, flat: cellNear(stop, remembered) }, callOf(stop).name)]);
  return [`This model has ${adds.length} such sums:`, links, "."];
}

// The cell of another stop at the same place: by order of the axes when the shapes agree, else by letters.
function sameCell(place, stop, cell) {
  const same = String(shapeOf(stop.array)) === String(shapeOf(place.stop.array));
  return same ? place.flat : cellNear(stop, cell);
}

// The gradient of a forward value, or the value of a gradient.
function drawOtherSide(place) {
  const { stop } = place;
  const link = (other) => linkTo({ ...place, stop: other, flat: place.flat }, other.address);
  if (!stop.backward) {
    const gradients = gradientsOf(stop);
    if (!gradients.length) return null;
    const shares = gradients.length > 1 ? [" One share of it: ", gradients.slice(0, -1).map(link)] : [];
    return make("p", { class: "side" }, "d loss / d this: ", link(gradients.at(-1)), ".", shares);
  }
  const array = data.gradient_of[stop.array];
  if (array === undefined) return null;
  const value = valueOf(stop);
  if (value) {
    const sum = gradientsOf(value).at(-1);
    if (sum.array === stop.array) return make("p", { class: "side" }, "This is d loss / d ", link(value), ".");
    return make("p", { class: "side" }, "This is one share of d loss / d ", link(value), "; the sum is ", link(sum), ".");
  }
  const x = numbersOf(place.state, array)[place.flat];
  const parameter = make("code", {}, data.parameters[array]);
  const shares = Object.keys(data.gradient_of).filter((other) => data.gradient_of[other] === array).map(Number);
  const share = stop.array === Math.max(...shares) ? "" : "one share of ";
  return make("p", { class: "side" }, `This is ${share}d loss / d `, parameter, `. This element of the parameter is now ${format(x)}.`);
}

// What the cell was made from, and where to see how that was made.
function drawSources(place) {
  const reads = readsOf(place.stop, place.state, place.flat);
  const names = namesRead(place.stop).filter((name) => reads.some((read) => read.name === name));
  const items = names.map((name) => {
    const elements = reads.filter((read) => read.name === name);
    const source = place.stop.sources.get(name);
    const array = place.stop.arrays[name];
    const from = source ? source.address : originOf(array);
    const role = elements.every((read) => read.decides) ? "decided, " : "";
    return make("li", {}, make("code", {}, name), make("span", { class: "from" }, ` ${role}from ${from}`),
      folded(elements.map((read) => chip(place, source, array, read.flat))));
  });
  return make("div", { "data-role": "sources" }, make("h3", {}, "Made from"),
    items.length ? make("ul", { class: "links" }, items) : make("p", {}, "Nothing: the line sets a constant."));
}

function originOf(array) {
  if (data.parameters[array]) return `the parameter ${data.parameters[array]}`;
  return holdsTokens(array) ? "the text" : "a line without a formula";
}

// What the cell went into.
function drawUses(place) {
  const uses = usesOf(place.stop, place.state, place.flat);
  const items = uses.map(({ stop, cells }) => make("li", {},
    make("code", {}, stop.address),
    make("span", { class: "from" }, stop.backward && !place.stop.backward ? " in backward" : ""),
    folded(cells.map((flat) => chip(place, stop, stop.array, flat)))));
  return make("div", { "data-role": "uses" }, make("h3", {}, "Goes into"),
    items.length ? make("ul", { class: "links" }, items) : noUses(place.stop));
}

function noUses(stop) {
  const other = stops.find((one) => one !== stop && one.array === stop.array);
  if (data.parameters[data.gradient_of[stop.array]]) return make("p", {}, "Nothing more in this step: the optimizer takes it.");
  if (other) return make("p", {}, "The caller has it as ", linkTo({ ...at, stop: other }, other.address), ".");
  return make("p", {}, stop.formula.name === "loss" ? "Nothing more: it is the loss, and backward begins here." : "Nothing more.");
}

// A button with one element: its place and its number. It goes to the line that made it.
function chip(place, stop, array, flat) {
  const text = [make("span", { class: "at" }, shortPlace(array, flat)), " ", format(numbersOf(place.state, array)[flat])];
  if (!stop) return make("span", { class: "chip" }, text);
  const title = `${stop.address}: ${cellWords(array, flat)}`;
  return make("button", { class: "chip", title, click: () => jump({ ...place, stop, flat }) }, text);
}

// "h1 n3→o0" for head 1, query n3, key o0.
function shortPlace(array, flat) {
  const names = unravel(flat, shapeOf(array)).map((i, axis) => {
    const kind = axisName(array, axis);
    return (kind === "head" ? "h" : kind === "key" ? "→" : "") + placeName(array, axis, i);
  });
  return names.join(" ").replace(" →", "→");
}

function folded(chips) {
  if (chips.length <= MOST_SHOWN) return make("span", { class: "chips" }, chips);
  const rest = make("span", { class: "chips" }, chips.slice(MOST_SHOWN));
  return [
    make("span", { class: "chips" }, chips.slice(0, MOST_SHOWN)),
    make("details", {}, make("summary", {}, `${chips.length - MOST_SHOWN} more`), rest),
  ];
}
