// One array as a table: one head of it where it has heads, with the characters of the text on its axes.

// What a table shows: { array, name, state, stop, slice, selected, lit, follow, choose, sums }.
//   slice     which head, as the place of the leading axes
//   selected  the flat index of the selected cell, or null
//   lit       the flat indices that the selected cell was made from
//   choose    is called with the flat index of a cell that is clicked or reached by arrows
//   follow    is called with the flat index of a cell on Enter or a click; null: choose alone

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
  table.append(make("caption", {}, captionOf(shown, most)), headerOf(shown, grid));
  const body = make("tbody");
  const sums = [];
  for (let r = 0; r < grid.rows; r++) {
    const cells = Array.from({ length: grid.columns }, (_, c) => cellElement(numbers, grid.flat(r, c), most, shown));
    const sum = shown.sums && sumOf(numbers, grid, r);
    sums.push(sum);
    body.append(make("tr", {}, rowHeader(shown.array, grid, r), cells, shown.sums && make("td", { class: "sum" }, formatSum(sum, most))));
  }
  table.append(body);
  const box = make("div", { class: "scroll", tabindex: "-1" }, table);
  return make("figure", { class: shown.follow ? "read" : "made" }, headTabs(shown), box, shown.sums && sumsNote(sums, most));
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

function captionOf(shown, most) {
  const from = shown.from ? [" ", make("span", { class: "from" }, shown.from)] : [];
  return [
    make("b", {}, shown.name),
    " ",
    make("span", { class: "shape" }, shapeWords(shown.array)),
    from,
    make("span", { class: "scale" }, `full colour at ±${format(most)}`),
  ];
}

function headerOf(shown, grid) {
  if (grid.columnAxis === null) return make("thead");
  const corner = make("td", { class: "corner" }, grid.rowAxis === null ? "" : cornerText(shown.array, grid));
  const names = Array.from({ length: grid.columns }, (_, c) => axisHeader(shown.array, grid.columnAxis, c, "col"));
  return make("thead", {}, make("tr", {}, corner, names, shown.sums && make("th", { scope: "col", class: "sum" }, "row sum")));
}

function cornerText(array, grid) {
  return axisName(array, grid.rowAxis) === "query" ? "query \\ key" : "";
}

function rowHeader(array, grid, r) {
  if (grid.rowAxis === null) return make("th", { scope: "row" }, "");
  return axisHeader(array, grid.rowAxis, r, "row");
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
  cell.append(format(x));
  return cell;
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
  const apart = Math.max(...sums.filter((sum) => isRounding(sum, most)).map((sum) => Math.abs(sum - Math.round(sum))));
  return make("p", { class: "note" }, `Row sums are rounded: they are off by at most ${apart === 0 ? "0" : apart.toExponential(0)}.`);
}

// The leading axes as tabs: heads, and q, k, v.
function headTabs(shown) {
  const shape = shapeOf(shown.array);
  const leading = shape.slice(0, -2);
  if (shape.length < 3) return null;
  const index = unravel(shown.slice, leading);
  return leading.map((length, axis) => make("div", { "class": "heads", "role": "group", "aria-label": `${axisName(shown.array, axis)} of ${shown.name}` },
    Array.from({ length }, (_, i) => make("button", {
      "aria-pressed": String(i === index[axis]),
      "click": () => shown.turn(ravel(index.with(axis, i), leading)),
    }, `${axisName(shown.array, axis)} ${placeName(shown.array, axis, i)}`))));
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
  if (shown.choose) shown.choose(Number(next.dataset.i));
}
