// The data of the page, and the numbers of every array.
// `data` is what gpt/trace/data.py made. An array is named by its place in data.arrays, a state by its place in data.states.

let data;

async function unpack() {
  const packed = bytes(document.getElementById("data").textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  data = JSON.parse(await new Response(stream).text());
  data.text = [...data.text]; // by characters: an emoji is one
  data.vocabulary = [...data.vocabulary];
  for (const state of data.states) {
    state.stored = new Float64Array(elements(state.numbers, 8).buffer);
    state.apart = new Float32Array(elements(state.errors, 4).buffer);
    state.moved = new Map();
  }
  let at = 0;
  data.differencesAt = new Map();
  for (const array of data.differences) {
    data.differencesAt.set(array, at);
    at += sizeOf(array);
  }
}

function bytes(base64) {
  return Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
}

// The bytes of elements of this size. They were packed as every first byte, then every second byte, and so on.
function elements(base64, size) {
  const planes = bytes(base64);
  const n = planes.length / size;
  return planes.map((_, i) => planes[(i % size) * n + Math.floor(i / size)]);
}

function shapeOf(array) {
  return data.arrays[array].shape;
}

function sizeOf(array) {
  return shapeOf(array).reduce((size, length) => size * length, 1);
}

// The numbers of an array, flat. An array that only moves another's elements is not stored: its formula is evaluated once.
function numbersOf(state, array) {
  const { stored, moved } = data.states[state];
  const at = data.arrays[array].at;
  if (at !== null) return stored.subarray(at, at + sizeOf(array));
  if (!moved.has(array)) {
    const maker = stops.find((stop) => stop.array === array && stop.formula.moves);
    moved.set(array, Float64Array.from({ length: sizeOf(array) }, (_, i) => evaluateStop(maker, state, i)));
  }
  return moved.get(array);
}

// The finite difference beside an element of a gradient, or null where none was taken.
function differenceOf(state, array, flat) {
  const at = data.differencesAt.get(array);
  if (at === undefined) return null;
  const apart = data.states[state].apart[at + flat];
  return { value: numbersOf(state, array)[flat] + apart, apart: Math.abs(apart) };
}

// [1, 3, 3] for the 57th element of an array of shape (4, 6, 6), and back.
function unravel(flat, shape) {
  const index = [];
  for (const length of [...shape].reverse()) {
    index.unshift(flat % length);
    flat = Math.floor(flat / length);
  }
  return index;
}

function ravel(index, shape) {
  return index.reduce((flat, i, axis) => flat * shape[axis] + i, 0);
}
