// Stops: the lines at which a reader can stop, with their addresses, and who reads what from whom.
//
// A stop is one value that a line makes by a formula. Its address is the call and the name, as `attention_backward/dscores`. The last
// stop of a name in a call has the name alone; the ones before it are `scores.1`, `scores.2`, in order.

let stops = [];

function findStops() {
  const firstBackward = data.calls.findIndex((call) => call.pair !== null);
  data.calls.forEach((call, number) => {
    const made = call.made.filter((value) => value.formula !== null);
    made.forEach((value, place) => {
      const same = made.filter((other) => other.name === value.name);
      const which = same.indexOf(value);
      const name = which === same.length - 1 ? value.name : `${value.name}.${which + 1}`;
      stops.push({
        ...value,
        call: number,
        order: stops.length,
        place,
        of: made.length,
        backward: number >= firstBackward,
        address: `${call.name}/${name}`,
        formula: data.functions[call.function].formulas[value.formula],
        ...namesAt(call, value),
      });
    });
  });
  stops = [...stops.filter((stop) => !stop.backward), ...stops.filter((stop) => stop.backward)];
  stops.forEach((stop, order) => (stop.order = order));
  for (const stop of stops) stop.sources = sourcesOf(stop);
}

// What the names on the line of a value mean: arguments, then what earlier lines made. Scalars stand beside them.
function namesAt(call, value) {
  const arrays = { ...call.arguments };
  for (const earlier of call.made) {
    if (earlier.line === value.line) break;
    arrays[earlier.name] = earlier.array;
  }
  return { arrays, scalars: call.scalars };
}

// What a stop is in any call of its function, such as attention_backward/dscores.
function kindOf(stop) {
  return `${callOf(stop).function}/${stop.address.split("/")[1]}`;
}

function callOf(stop) {
  return data.calls[stop.call];
}

function functionOf(stop) {
  return data.functions[callOf(stop).function];
}

// The names of arrays that the formula of a stop reads, in the order of its text.
function namesRead(stop) {
  return [...new Set(elementsOf(stop.formula.tree).map(([, name]) => name))];
}

// For every name that a stop reads, the stop that made the array, or null for a parameter and the text.
function sourcesOf(stop) {
  return new Map(namesRead(stop).map((name) => [name, sourceOf(stop, name)]));
}

// Several lines may hand on the same array under other names. The one to go to is, first, an earlier line of the same call; then the
// last one that gives it a name by which the reader or the reader's callers know it; then the last one.
function sourceOf(reader, name) {
  const array = reader.arrays[name];
  const before = stops.filter((stop) => stop.array === array && stop.order < reader.order);
  const own = before.filter((stop) => stop.call === reader.call && stop.name === name && stop.line < reader.line);
  const elsewhere = before.filter((stop) => stop.call !== reader.call);
  const called = elsewhere.filter((stop) => stop.name === name);
  const known = elsewhere.filter((stop) => callersNames(callOf(reader), array).includes(stop.name));
  return [own, called, known, elsewhere].find((list) => list.length)?.at(-1) ?? null;
}

function callersNames(call, array) {
  if (call.parent === null) return [];
  const caller = data.calls[call.parent];
  const given = Object.keys(caller.arguments).filter((name) => caller.arguments[name] === array);
  const made = caller.made.filter((value) => value.array === array).map((value) => value.name);
  return [...given, ...made, ...callersNames(caller, array)];
}

function indicesAt(stop, flat) {
  const index = unravel(flat, shapeOf(stop.array));
  return Object.fromEntries(stop.formula.indices.map((letter, axis) => [letter, index[axis]]));
}

function scopeAt(stop, state) {
  return { state, arrays: stop.arrays, scalars: stop.scalars };
}

function evaluateStop(stop, state, flat) {
  return evaluate(stop.formula.tree, indicesAt(stop, flat), scopeAt(stop, state));
}

// The elements that one cell of a stop was made from, each once: { array, flat, name }. `decides` is true of an element that a
// condition looked at and whose value did not enter.
function readsOf(stop, state, flat) {
  const reads = [];
  const decides = [];
  evaluate(stop.formula.tree, indicesAt(stop, flat), scopeAt(stop, state), reads, decides);
  const found = new Map();
  for (const list of [decides, reads]) {
    for (const [array, i] of list) {
      const name = namesRead(stop).find((candidate) => stop.arrays[candidate] === array);
      found.set(`${array}/${i}`, { array, flat: i, name, decides: list === decides });
    }
  }
  return [...found.values()];
}

// The stops that read one cell of this stop, each with its cells that do.
function usesOf(stop, state, flat) {
  const readers = stops.filter((reader) => [...reader.sources.values()].includes(stop));
  return readers.map((reader) => ({
    stop: reader,
    cells: cellsOf(reader.array).filter((cell) =>
      readsOf(reader, state, cell).some((read) => read.array === stop.array && read.flat === flat)),
  })).filter((use) => use.cells.length);
}

function valueAt({ state, stop, flat }) {
  return numbersOf(state, stop.array)[flat];
}

function cellsOf(array) {
  return Array.from({ length: sizeOf(array) }, (_, i) => i);
}

// The stop on the other side: of forward for a backward stop, and the other way round. It is the value that this is the gradient
// of, or this value's gradient, or else the end of the paired call.
function otherSide(stop) {
  const linked = stop.backward ? valueOf(stop) : gradientsOf(stop).at(-1);
  if (linked) return linked;
  const call = stop.backward ? callOf(stop).pair : data.calls.findIndex((other) => other.pair === stop.call);
  return stops.filter((other) => other.call === call).at(-1) ?? null;
}

// The forward stop whose gradient this stop makes. The array of a parameter has none.
function valueOf(stop) {
  const array = data.gradient_of[stop.array];
  const makers = stops.filter((other) => !other.backward && other.array === array);
  return makers.find((other) => other.call === callOf(stop).pair) ?? makers.at(-1) ?? null;
}

// The stops that make a gradient of this stop's value. Where two are added, the sum is the last.
function gradientsOf(stop) {
  const arrays = Object.keys(data.gradient_of).filter((array) => data.gradient_of[array] === stop.array).map(Number);
  const makers = arrays.map((array) => {
    const found = stops.filter((other) => other.backward && other.array === array);
    return found.find((other) => other.formula.name === `d${stop.formula.name}`) ?? found[0];
  });
  return makers.filter(Boolean).sort((a, b) => a.order - b.order);
}

// Where the value of a stop, or the value that it is a gradient of, is used twice: the value, its uses and the add. Otherwise null.
function twiceUsed(stop) {
  const array = data.gradient_of[stop.array] ?? stop.array;
  const add = stops.find((other) => callOf(other).function === "add" && data.gradient_of[other.array] === array);
  if (!add) return null;
  const value = stops.findLast((other) => !other.backward && other.array === array);
  if (!value) return null;
  const readers = stops.filter((other) => !other.backward && [...other.sources.values()].some((from) => from?.array === array));
  const uses = [...new Map(readers.map((reader) => [reader.call, reader])).values()];
  return { add, value, uses };
}

// Addresses.

function cellName(stop, flat) {
  const at = indicesAt(stop, flat);
  return stop.formula.indices.map((letter) => letter + at[letter]).join("");
}

function addressOf({ state, stop, flat }) {
  const cell = cellName(stop, flat);
  return `${data.states[state].step}/${stop.address}${cell ? "/" + cell : ""}`;
}

// The place of an address, and in `missing` what of it does not exist. The nearest place that exists stands in for it.
function placeOf(address, before) {
  const [step, call = "", name = "", cell = ""] = address.replace(/^#/, "").split("/");
  const missing = [];
  let state = data.states.findIndex((one) => String(one.step) === step);
  if (state < 0) {
    missing.push(`step ${step}`);
    state = before.state;
  }
  let stop = stops.find((one) => one.address === `${call}/${name}`);
  if (!stop) {
    const ofCall = stops.find((one) => callOf(one).name === call);
    if (name || !ofCall) missing.push(name ? `${call}/${name}` : call || "place without a call");
    stop = ofCall ?? before.stop;
  }
  const wanted = Object.fromEntries([...cell.matchAll(/([a-z])(\d+)/g)].map(([, letter, i]) => [letter, Number(i)]));
  const flat = cellNear(stop, wanted);
  if (cell && cellName(stop, flat) !== cell) missing.push(`cell ${cell}`);
  return { state, stop, flat, missing };
}

// The cell of a stop with these indices, as far as it has them.
function cellNear(stop, wanted) {
  const shape = shapeOf(stop.array);
  const index = stop.formula.indices.map((letter, axis) => Math.min(wanted[letter] ?? 0, shape[axis] - 1));
  return ravel(index, shape);
}
