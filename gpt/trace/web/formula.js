// Formulas: the value of one element, and the elements that it reads. The grammar of the trees is in gpt/trace/formula.py.
//
// A scope says what the names of a formula mean: { state, arrays: {name: array}, scalars: {name: number} }.
// `at` is the value of every index, such as {h: 1, t: 3, s: 3}. Every element whose value enters the result is appended to `reads`, as
// [array, flat]; what a condition looks at only decides, and is appended to `decides`.

const BINARY = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "//": (a, b) => Math.floor(a / b),
  "%": (a, b) => a % b,
  "max": Math.max,
  "<": (a, b) => Number(a < b),
  "<=": (a, b) => Number(a <= b),
  ">": (a, b) => Number(a > b),
  "==": (a, b) => Number(a === b),
};
const OF_ONE = { exp: Math.exp, log: Math.log, sqrt: Math.sqrt, tanh: Math.tanh, neg: (a) => -a };
const OVER_AN_INDEX = {
  Sum: (terms) => terms.reduce((sum, term) => sum + term, 0),
  Mean: (terms) => terms.reduce((sum, term) => sum + term, 0) / terms.length,
  Max: (terms) => Math.max(...terms),
};

function evaluate(tree, at, scope, reads = [], decides = []) {
  const [kind, first, second, third] = tree;
  if (kind === "num") return first;
  if (kind === "name") return nameValue(first, at, scope);
  if (kind === "at") {
    const [array, flat] = elementOf(tree, at, scope, reads);
    reads.push([array, flat]);
    return numbersOf(scope.state, array)[flat];
  }
  if (kind === "if") return evaluate(evaluate(first, at, scope, decides) ? second : third, at, scope, reads, decides);
  if (kind in OVER_AN_INDEX) {
    return OVER_AN_INDEX[kind](eachTerm(tree, at, scope).map((inner) => evaluate(second, inner, scope, reads, decides)));
  }
  if (kind in OF_ONE) return OF_ONE[kind](evaluate(first, at, scope, reads, decides));
  return BINARY[kind](evaluate(first, at, scope, reads, decides), evaluate(second, at, scope, reads, decides));
}

function nameValue(name, at, scope) {
  if (name in at) return at[name];
  return name === "inf" ? Infinity : scope.scalars[name];
}

// Which element an ["at", name, indices] names: [array, flat].
function elementOf(tree, at, scope, reads = []) {
  const array = scope.arrays[tree[1]];
  const index = tree[2].map((part) => evaluate(part, at, scope, reads));
  return [array, ravel(index, shapeOf(array))];
}

// The index values of every term of a Sum, Mean or Max.
function eachTerm([, index, body], at, scope) {
  return Array.from({ length: axisLength(body, index, scope) }, (_, i) => ({ ...at, [index]: i }));
}

// How many values an index has: the length of an axis that it addresses alone.
function axisLength(tree, index, scope) {
  for (const [, name, indices] of elementsOf(tree)) {
    const axis = indices.findIndex((part) => part[0] === "name" && part[1] === index);
    if (axis >= 0) return shapeOf(scope.arrays[name])[axis];
  }
  throw new Error(`no array is indexed with ${index} alone`);
}

// Every ["at", name, indices] of a tree.
function elementsOf(tree) {
  const parts = tree[0] === "at" ? tree[2] : tree.filter(Array.isArray);
  return [...(tree[0] === "at" ? [tree] : []), ...parts.flatMap(elementsOf)];
}
