// How numbers and places are written.

// One rule for every number in a table, a formula or a sentence: 0 and other whole numbers below 10,000 plain, -∞ as such, and
// everything else with four significant digits, which have an exponent below 0.001 and from 10,000 on.
function format(x) {
  if (x === 0) return "0";
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "not a number" : x > 0 ? "∞" : "-∞";
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e4) return String(x);
  return size < 1e-3 || size >= 1e4 ? x.toExponential(3) : x.toPrecision(4);
}

// Two numbers side by side need more digits, or they would look equal too soon.
function formatLong(x) {
  if (x === 0) return "0";
  return Math.abs(x) < 1e-3 ? x.toExponential(5) : x.toPrecision(6);
}

function signOf(x) {
  if (x === -Infinity) return "masked";
  return x > 0 ? "positive" : x < 0 ? "negative" : "exactly 0";
}

function showCharacter(letter) {
  return letter === " " ? "␣" : letter === "\n" ? "↵" : letter;
}

function sayCharacter(letter) {
  return letter === " " ? "space" : letter === "\n" ? "line break" : letter;
}

// What stands at place i of an axis: the character and its place, a token, or a number. `kind` is "show" or "say".
function placeName(array, axis, i, kind = "show") {
  const { axes, shape } = data.arrays[array];
  const letter = kind === "say" ? sayCharacter : showCharacter;
  if (shape.length === 4 && axis === 0) return "qkv"[i];
  const isInput = i < data.text.length - 1; // a context may be longer than the text
  if (axes[axis] === "position" && isInput) return letter(data.text[i]) + (kind === "say" ? " " : "") + i;
  if (axes[axis] === "token") return letter(data.vocabulary[i]);
  return String(i);
}

// What an axis counts. Of two axes of positions, the first is the query's and the second the key's.
function axisName(array, axis) {
  const { axes, shape } = data.arrays[array];
  if (shape.length === 4 && axis === 0) return "part";
  if (axes[axis] !== "position") return axes[axis];
  const positions = axes.flatMap((name, place) => (name === "position" ? [place] : []));
  if (positions.length < 2) return "position";
  return axis === positions[0] ? "query" : "key";
}

// "head 1, query n3, key o4"
function cellWords(array, flat, kind = "show") {
  const index = unravel(flat, shapeOf(array));
  return index.map((i, axis) => `${axisName(array, axis)} ${placeName(array, axis, i, kind)}`).join(", ");
}

// The shape in words of code: (4, 6, 6).
function shapeWords(array) {
  const shape = shapeOf(array);
  if (shape.length === 0) return "one number";
  return shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
}
