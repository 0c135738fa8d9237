// Formulas as native MathML: with their names, or with the numbers of one cell.
//
// `cell` is null for the names, and { at, scope, inside } for the numbers, where `inside` counts the sums around an expression.

const MOST_TERMS = 8;
const LONG = 38; // letters of a formula that still fits on one line
const SYMBOLS = { "+": "+", "-": "−", "*": "·", "%": "mod", "<": "<", "<=": "≤", ">": ">", "==": "=" };
const STRENGTH = { "<": 0, "<=": 0, ">": 0, "==": 0, "+": 1, "-": 1, "neg": 1, "*": 2, "%": 2 };
const CALLED = { Sum: "∑", Mean: "mean", Max: "max" };

function element(tag, ...children) {
  const found = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  found.append(...children);
  return found;
}

function withAttributes(found, attributes) {
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

const row = (...children) => element("mrow", ...children);
const operator = (text) => element("mo", text);
const space = () => withAttributes(element("mspace"), { width: "0.17em" });
const bracketed = (inside, open = "(", close = ")") => row(operator(open), inside, operator(close));

// The formula of a stop with its names.
function formulaWithNames(stop) {
  const { name, indices, tree, text } = stop.formula;
  const left = subscripted(name, indices.map((letter) => ["name", letter]), null);
  return mathElement(text, [left], [operator("="), draw(tree, null)]);
}

// The formula of a stop with the numbers of one cell in it.
function formulaWithNumbers(stop, state, flat) {
  const at = indicesAt(stop, flat);
  const scope = scopeAt(stop, state);
  const cell = { at, scope, inside: 0 };
  const value = format(numbersOf(state, stop.array)[flat]);
  const left = subscripted(stop.formula.name, stop.formula.indices.map((letter) => ["name", letter]), cell);
  const { moves, tree } = stop.formula;
  if (moves) return mathElement(stop.formula.text, [left], [operator("="), drawMove(tree, cell), operator("="), number(value)]);
  return mathElement(stop.formula.text, [draw(tree, cell)], [operator("="), number(value)]);
}

// Two parts that are one equation. A long one breaks before the sign.
function mathElement(text, first, second) {
  const isLong = text.length > LONG;
  const rows = [first, second].map((parts) => element("mtr", element("mtd", row(...parts))));
  const broken = withAttributes(element("mtable", ...rows), { class: "broken", displaystyle: "true" });
  return withAttributes(element("math", isLong ? broken : row(...first, ...second)), { display: "block", alttext: text });
}

function number(text) {
  return text.startsWith("-") ? row(operator("−"), element("mn", text.slice(1))) : element("mn", text);
}

// An expression that stands beside operators of this strength.
function draw(tree, cell, beside = -1) {
  const [kind, first, second, third] = tree;
  if (kind === "num") return number(String(first));
  if (kind === "name") return drawName(first, cell);
  if (kind === "at") return cell ? drawValue(tree, cell, beside) : subscripted(first, second, null);
  if (kind === "if") return cell ? drawBranch(tree, cell, beside) : cases(first, second, third);
  if (kind in CALLED) return cell ? drawTerms(tree, cell) : drawOver(kind, first, second, beside);
  if (kind === "sqrt") return element("msqrt", draw(first, cell));
  if (kind === "/") return element("mfrac", draw(first, cell), draw(second, cell));
  if (kind === "//") return bracketed(element("mfrac", draw(first, cell), draw(second, cell)), "⌊", "⌋");
  if (kind === "neg") return row(operator("−"), draw(first, cell, 2));
  if (kind in OF_ONE) return row(element("mi", kind), bracketed(draw(first, cell)));
  if (kind === "max") return row(element("mi", kind), bracketed(row(draw(first, cell), operator(","), draw(second, cell))));
  return drawBinary(tree, cell, beside);
}

function drawBinary([kind, first, second], cell, beside) {
  const strength = STRENGTH[kind];
  const sign = operator(cell && kind === "*" ? "×" : SYMBOLS[kind]);
  const found = row(draw(first, cell, strength), sign, draw(second, cell, strength + (kind === "+" || kind === "*" ? 0.1 : 0.5)));
  if (strength === 0) return beside === -2 ? found : bracketed(found, "[", "]");
  return Math.floor(beside) > strength || beside === strength + 0.5 ? bracketed(found) : found;
}

function drawName(name, cell) {
  if (name === "inf") return element("mi", "∞");
  if (cell) return number(format(nameValue(name, cell.at, cell.scope)));
  if (name === "SQRT_2_OVER_PI") return element("msqrt", element("mfrac", element("mn", "2"), element("mi", "π")));
  return element("mi", name);
}

function subscripted(name, indices, cell) {
  if (!indices.length) return element("mi", name);
  const parts = indices.map((part) => (cell ? element("mn", String(evaluate(part, cell.at, cell.scope))) : draw(part, null)));
  const isPlain = !cell && indices.every(([kind, letter]) => kind === "name" && letter.length === 1);
  const separated = parts.flatMap((part, i) => (i && !isPlain ? [operator(","), part] : [part]));
  return element("msub", element("mi", name), row(...separated));
}

// A number that stands to the right of an operator is bracketed when it is negative.
function drawValue(tree, cell, beside) {
  const x = evaluate(tree, cell.at, cell.scope);
  const found = number(format(x));
  return x < 0 && beside > 0 && beside !== Math.floor(beside) ? bracketed(found) : found;
}

function drawOver(kind, index, body, beside) {
  const sign = kind === "Sum" ? operator(CALLED[kind]) : element("mi", CALLED[kind]);
  const found = row(element("munder", sign, element("mi", index)), space(), draw(body, null, kind === "Sum" ? 1.5 : 3));
  return kind === "Sum" && (beside === 1 || beside === 2) ? bracketed(found) : found;
}

// The terms of a sum below each other. Inside a sum, another one is shown by its value.
function drawTerms(tree, cell) {
  const [kind, , body] = tree;
  if (cell.inside) return bracketedIfNegative(evaluate(tree, cell.at, cell.scope));
  const terms = eachTerm(tree, cell.at, cell.scope);
  const shown = terms.slice(0, MOST_TERMS).map((at) => draw(body, { ...cell, at, inside: 1 }, 1));
  const rest = terms.slice(MOST_TERMS).map((at) => evaluate(body, at, cell.scope));
  if (rest.length) {
    const value = OVER_AN_INDEX[kind === "Mean" ? "Sum" : kind](rest);
    shown.push(row(bracketedIfNegative(value), element("mtext", `\u00a0from ${rest.length} more`)));
  }
  const joint = kind === "Max" ? "," : "+";
  const rows = shown.map((term, i) => {
    const before = i && joint === "+" ? operator("+") : row();
    const after = i < shown.length - 1 && joint === "," ? operator(",") : row();
    return element("mtr", element("mtd", before), element("mtd", term, after));
  });
  // The brackets are drawn by the style, because not every font has tall ones.
  const whole = withAttributes(element("mtable", ...rows), { class: "terms" });
  if (kind === "Mean") return element("mfrac", whole, element("mn", String(terms.length)));
  return kind === "Max" ? row(element("mi", "max"), whole) : whole;
}

function bracketedIfNegative(x) {
  return x < 0 ? bracketed(number(format(x))) : number(format(x));
}

function cases(condition, yes, no) {
  const lines = [];
  let tree = ["if", condition, yes, no];
  while (tree[0] === "if") {
    lines.push([draw(tree[2], null), row(element("mtext", "if\u00a0"), draw(tree[1], null, -2))]);
    tree = tree[3];
  }
  lines.push([draw(tree, null), element("mtext", "otherwise")]);
  const rows = lines.map((parts) => element("mtr", ...parts.map((part) => element("mtd", part))));
  return withAttributes(element("mtable", ...rows), { class: "cases" });
}

// Of a choice with numbers, the branch that is taken, and why.
function drawBranch([, condition, yes, no], cell, beside) {
  const holds = evaluate(condition, cell.at, cell.scope);
  const why = [element("mtext", "\u00a0since\u00a0"), draw(condition, cell), element("mtext", holds ? "\u00a0holds" : "\u00a0is false")];
  return row(draw(holds ? yes : no, cell, beside), ...why);
}

// A line that only moves elements: which one is taken.
function drawMove(tree, cell) {
  let taken = tree;
  while (taken[0] === "if") taken = evaluate(taken[1], cell.at, cell.scope) ? taken[2] : taken[3];
  return subscripted(taken[1], taken[2], cell);
}
