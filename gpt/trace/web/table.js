// One array as a table: one head of it where it has heads, with the characters of the text on its axes.

// What a table shows: { array, name, state, slice, from, choose, follow, turn, sums }.
//   slice     which head, as the place of the leading axes
//   from      where the array comes from, in words
//   choose    is called with the flat index of a cell that is reached by arrows
//   follow    is called with the flat index of a cell on Enter or a click; where there is none, choose is
//   turn      is called with the slice of another head
//   sums      whether a column of row sums is shown

function drawTable(shown) {
  const numbers = numbersOf(shown.state, shown.array);
  const grid = gridOf(shown.array, shown.slice);
  const most = largest(numbers);
  const table = make("table", {
    "role": "grid",
    "data-array": shown.array,
    "data-step": data.states[shown.state].step,
    "keydown": (event) => moveFocus(event, table, grid, shown),
  });
  table.append(make("caption", { class: "unseen" }, `${shown.name}${shown.from ? ", " + shown.from : ""}`), headerOf(shown, grid));
  const body = make("tbody");
  const sums = [];
  for (let r = 0; r < grid.rows; r++) {
    const cells = Array.from({ length: grid.columns }, (_, c) => cellElement(numbers, grid.flat(r, c), most, shown));
    const sum = shown.sums && sumOf(numbers, grid, r);
    sums.push(sum);
    body.append(make("tr", {}, rowHeader(shown, grid, r), cells, shown.sums && make("td", { class: "sum" }, formatSum(sum, most))));
  }
  table.append(body);
  const box = make("div", { class: "scroll", tabindex: "-1" }, table);
  const title = make("div", { class: "title" }, titleOf(shown, most), headTabs(shown));
  return make("figure", { class: shown.follow ? "read" : "made" }, title, box, shown.sums && sumsNote(sums, most));
}

// Where the cells of an array stand. The last two axes are the rows and columns; a vector over positions or tokens stands upright.
function gridOf(array, slice) {
  const { shape, axes } = data.arrays[array];
  const n = shape.length;
  if (n === 0) return { rows: 1, columns: 1, rowAxis: null, columnAxis: null, flat: () => 0 };
  if (n === 1 && axes[0] === "channel") return { rows: 1, columns: shape[0], rowAxis: null, columnAxis: 0, flat: (r, c) => c };
  if (n === 1) return { rows: shape[0], columns: 1, rowAxis: 0, columnAxis: null, flat: (r) => r };
  const [rows, columns] = shape.slice(-2);
  const start = slice * rows * columns;
  return { rows, columns, rowAxis: n - 2, columnAxis: n - 1, flat: (r, c) => start + r * columns + c };
}

function sliceOf(array, flat) {
  const shape = shapeOf(array);
  return shape.length < 3 ? 0 : Math.floor(flat / (shape.at(-1) * shape.at(-2)));
}

function largest(numbers) {
  return numbers.reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 0);
}

function titleOf(shown, most) {
  return [
    make("b", {}, shown.name),
    make("span", { class: "shape" }, shapeWords(shown.array)),
    shown.from && make("span", { class: "from" }, shown.from),
    make("span", { class: "scale" }, `full colour at ±${format(most)}`),
  ];
}

function headerOf(shown, grid) {
  if (grid.columnAxis === null) return make("thead");
  const corner = make("td", { class: "corner" }, cornerText(shown.array, grid));
  const names = Array.from({ length: grid.columns }, (_, c) => axisHeader(shown.array, grid.columnAxis, c, "col"));
  return make("thead", {}, make("tr", {}, corner, names, shown.sums && make("th", { scope: "col", class: "sum" }, "row sum")));
}

function cornerText(array, grid) {
  const columns = axisName(array, grid.columnAxis);
  return columns === "key" ? "query \\ key" : columns;
}

function rowHeader(shown, grid, r) {
  if (grid.rowAxis === null) return make("th", { scope: "row" }, shown.name);
  return axisHeader(shown.array, grid.rowAxis, r, "row");
}

function axisHeader(array, axis, i, scope) {
  const name = placeName(array, axis, i);
  const isPosition = axisName(array, axis) !== "channel" && data.arrays[array].axes[axis] === "position";
  const text = isPosition ? [name.slice(0, -String(i).length), make("sub", {}, String(i))] : name;
  return make("th", { scope }, text);
}

function cellElement(numbers, flat, most, shown) {
  const x = numbers[flat];
  const sign = x === -Infinity ? "masked" : x > 0 ? "plus" : x < 0 ? "minus" : "zero";
  const cell = make("td", { "data-i": flat, "class": sign, "tabindex": "-1", "click": () => (shown.follow ?? shown.choose)(flat) });
  if (Number.isFinite(x) && x !== 0) cell.style.setProperty("--much", Math.max(0.08, Math.abs(x) / most).toFixed(3));
  if (holdsTokens(shown.array)) cell.dataset.token = showCharacter(data.vocabulary[x]);
  cell.append(format(x));
  return cell;
}

// The text itself: its numbers are tokens.
function holdsTokens(array) {
  const { idx, targets } = data.calls[0].arguments;
  return array === idx || array === targets;
}

function sumOf(numbers, grid, r) {
  return Array.from({ length: grid.columns }, (_, c) => numbers[grid.flat(r, c)]).reduce((sum, x) => sum + x, 0);
}

// A sum that differs from a whole number by rounding alone is written as that number.
function formatSum(sum, most) {
  return format(isRounding(sum, most) ? Math.round(sum) : sum);
}

function isRounding(sum, most) {
  return Math.abs(sum - Math.round(sum)) < 1e-12 * Math.max(most, 1e-3);
}

function sumsNote(sums, most) {
  if (!sums.every((sum) => isRounding(sum, most))) return null;
  const apart = Math.max(...sums.map((sum) => Math.abs(sum - Math.round(sum))));
  return make("p", { class: "note" }, `The row sums hold but for rounding: ${apart === 0 ? "0" : apart.toExponential(0)} at most.`);
}

// The leading axes as tabs: heads, and q, k, v.
function headTabs(shown) {
  const shape = shapeOf(shown.array);
  const leading = shape.slice(0, -2);
  if (shape.length < 3) return null;
  const index = unravel(shown.slice, leading);
  return leading.map((length, axis) => {
    const what = axisName(shown.array, axis);
    const buttons = Array.from({ length }, (_, i) => make("button", {
      "data-turn": `${shown.name}/${axis}/${i}`,
      "aria-pressed": String(i === index[axis]),
      "click": () => shown.turn(ravel(index.with(axis, i), leading)),
    }, `${what} ${placeName(shown.array, axis, i)}`));
    return make("div", { "class": "heads", "role": "group", "aria-label": `${what} of ${shown.name}` }, buttons);
  });
}

// Mark the selected cell and the lit ones, and let one cell be reached by Tab.
function markTable(table, selected, lit) {
  for (const cell of table.querySelectorAll("td[data-i]")) {
    const flat = Number(cell.dataset.i);
    cell.classList.toggle("selected", flat === selected);
    cell.classList.toggle("lit", lit.has(flat));
    cell.tabIndex = -1;
    if (selected !== null) cell.setAttribute("aria-selected", String(flat === selected));
  }
  const first = table.querySelector("td.selected") ?? table.querySelector("td.lit") ?? table.querySelector("td[data-i]");
  first.tabIndex = 0;
  return first;
}

// Scroll the box of a table, and not the page, so that a cell is seen.
function keepInBox(cell) {
  const box = cell.closest(".scroll");
  const [inner, outer] = [cell.getBoundingClientRect(), box.getBoundingClientRect()];
  const header = 40; // the row headers stay where they are, above the cells
  if (inner.left < outer.left + header) box.scrollLeft += inner.left - outer.left - header;
  if (inner.right > outer.right) box.scrollLeft += inner.right - outer.right + 4;
  if (inner.top < outer.top) box.scrollTop += inner.top - outer.top;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 4;
}

// A box that scrolls must be reached by the keyboard.
function letScroll(selector, label) {
  for (const box of document.querySelectorAll(selector)) {
    if (box.scrollWidth <= box.clientWidth) continue;
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", label);
  }
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function moveFocus(event, table, grid, shown) {
  const cell = event.target.closest("td[data-i]");
  if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return (shown.follow ?? shown.choose)(Number(cell.dataset.i));
  }
  const places = [...table.querySelectorAll("td[data-i]")];
  const place = places.indexOf(cell);
  let [r, c] = [Math.floor(place / grid.columns), place % grid.columns];
  if (event.key in STEPS) {
    r = Math.min(Math.max(r + STEPS[event.key][0], 0), grid.rows - 1);
    c = Math.min(Math.max(c + STEPS[event.key][1], 0), grid.columns - 1);
  } else if (event.key === "Home") c = 0;
  else if (event.key === "End") c = grid.columns - 1;
  else return;
  event.preventDefault();
  event.stopPropagation();
  const next = places[r * grid.columns + c];
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  shown.choose(Number(next.dataset.i));
}
