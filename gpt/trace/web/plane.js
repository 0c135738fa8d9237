// The value plane: why dscores = p dy . (v - y). Where a head has two channels, its values are points that can be drawn.
//
// For one head and one query: every visible value v_s is a dot of the size of its weight p_s, y is their mean by weight, and dy is an
// arrow. A dot's place along the arrow, seen from y, is dy . (v_s - y): how the loss changes as the mixture moves towards v_s. Times
// p_s it is the gradient of the score.

const PLANE_AT = ["attention_forward/probs", "attention_forward/y", "attention_backward/dprobs", "attention_backward/dscores", "softmax_backward/dx"];
const WIDTH = 300;
const HEIGHT = 260;
const EDGE = 44; // what is left free around the points
const STRIDE = 0.08; // how far an arrow key moves a handle, as a share of the drawing

let moved = null; // what the reader has moved, or null: { v: [[x, y], ...], dy: [x, y] }

// The recorded numbers of the plane at a place, or null where there is none.
function recordedPlane(place) {
  const { stop, state, flat } = place;
  if (!PLANE_AT.includes(kindOf(stop))) return null;
  const call = backwardCall(stop);
  const dprobs = stops.find((one) => one.call === call && kindOf(one) === "attention_backward/dprobs");
  if (!dprobs || shapeOf(dprobs.arrays.v)[2] !== 2) return null;
  const at = indicesAt(stop, flat);
  const [, T, D] = shapeOf(dprobs.arrays.v);
  const head = at.h ?? Math.floor(at.e / D);
  const pair = (array, t) => [0, 1].map((d) => numbersOf(state, array)[(head * T + t) * D + d]);
  const keys = Array.from({ length: at.t + 1 }, (_, s) => s);
  return {
    head,
    query: at.t,
    key: at.s ?? null,
    p: keys.map((s) => numbersOf(state, dprobs.arrays.probs)[(head * T + at.t) * T + s]),
    v: keys.map((s) => pair(dprobs.arrays.v, s)),
    dy: pair(dprobs.arrays.dy, at.t),
  };
}

// The call of attention_backward that belongs to a stop of attention, or that called softmax_backward.
function backwardCall(stop) {
  if (!stop.backward) return data.calls.findIndex((call) => call.pair === stop.call);
  return callOf(stop).function === "attention_backward" ? stop.call : callOf(stop).parent;
}

const dot = ([a, b], [c, d]) => a * c + b * d;
const minus = ([a, b], [c, d]) => [a - c, b - d];

// What follows from the points: y, the projections and the gradients of the scores.
function consequences({ p, v, dy }) {
  const y = [0, 1].map((d) => p.reduce((sum, weight, s) => sum + weight * v[s][d], 0));
  const along = v.map((point) => dot(dy, minus(point, y)));
  return { y, along, dscores: along.map((a, s) => a * p[s]) };
}

function drawPlane(place) {
  const recorded = recordedPlane(place);
  if (!recorded) return null;
  const plane = { ...recorded, ...moved };
  const found = consequences(plane);
  const name = (s) => showCharacter(data.text[s]) + s;
  const reset = make("button", { class: "reset", disabled: !moved, click: () => movePlane(null) }, "back to the recorded numbers");
  const hint = moved
    ? "You have moved a point: these are no longer the recorded numbers. "
    : "Drag a dot or the arrow’s tip, or focus one and use the arrow keys. ";
  return [
    make("h2", { id: "plane-title" }, `The value plane: head ${plane.head}, query ${name(plane.query)}`),
    make("p", { class: "note" }, "Dots are the values v of the keys that the query sees, larger for a larger weight p, orange where dscores is above 0 ",
      "and blue below. The cross is y, attention’s output: their mean by weight. The arrow is its gradient dy, drawn longer than it is. A dotted ",
      "line leads from each v to its foot on the line along dy: its distance from y, times the length of dy, is dy · (v − y)."),
    make("div", { class: "columns" }, planePicture(plane, found, name), planeTable(plane, found, name)),
    make("p", { class: "note" }, hint, reset),
    make("ol", { class: "sentences" },
      make("li", {}, "dprobs is dy · v. Its mean by weight, sum(p dprobs), is dy · sum(p v) = dy · y = ",
        `${format(dot(plane.dy, found.y))}. So dscores = p (dprobs − sum(p dprobs)) = p (dy · (v − y)).`),
      make("li", {}, "Raising a score moves y towards that key’s v. If this raises the loss, dscores is above 0, and training lowers the score."),
      make("li", {}, "A key whose v is y gets 0. So does an only key, and a masked one, whose weight is 0."),
      make("li", {}, "FlashAttention computes dy · y once per row, so it needs no row of probs for the mean.")),
  ];
}

function showPlane(place) {
  const found = isHidden(place) ? null : drawPlane(place);
  byId("plane").hidden = !found;
  byId("plane").replaceChildren(...(found ?? []));
}

function movePlane(change) {
  moved = change;
  const focused = document.activeElement?.dataset?.handle;
  showPlane(at);
  if (focused !== undefined) document.querySelector(`#plane [data-handle="${focused}"]`)?.focus();
}

// From the numbers to the drawing and back. The view is that of the recorded points, so that it stands still while one is moved.
function viewOf(recorded) {
  const lowest = [0, 1].map((d) => Math.min(...recorded.v.map((point) => point[d])));
  const highest = [0, 1].map((d) => Math.max(...recorded.v.map((point) => point[d])));
  const [width, height] = minus(highest, lowest);
  const unit = Math.min((WIDTH - 2 * EDGE) / Math.max(width, 0.5), (HEIGHT - 2 * EDGE) / Math.max(height, 0.5));
  const arrow = 60 / Math.max(Math.hypot(...recorded.dy), 1e-30);
  const center = [0, 1].map((d) => (lowest[d] + highest[d]) / 2);
  return {
    unit,
    arrow,
    out: ([a, b]) => [WIDTH / 2 + (a - center[0]) * unit, HEIGHT / 2 - (b - center[1]) * unit],
    back: ([a, b]) => [center[0] + (a - WIDTH / 2) / unit, center[1] - (b - HEIGHT / 2) / unit],
  };
}

function planePicture(plane, found, name) {
  const view = viewOf(recordedPlane(at));
  const center = view.out(found.y);
  const tip = [center[0] + plane.dy[0] * view.arrow, center[1] - plane.dy[1] * view.arrow];
  const length = Math.hypot(...minus(tip, center)) || 1;
  const direction = minus(tip, center).map((part) => part / length);
  const along = (far) => center.map((part, d) => part + far * direction[d]);
  const far = WIDTH + HEIGHT;
  const label = "The values of this head as points. The table has the same numbers";
  const picture = svg("svg", { "viewBox": `0 0 ${WIDTH} ${HEIGHT}`, "role": "group", "aria-label": label });
  picture.append(
    svg("line", { class: "axis", ...ends(along(-far), along(far)) }),
    ...plane.v.map((point) => {
      const place = view.out(point);
      const foot = dot(minus(place, center), direction);
      return svg("line", { class: "drop", ...ends(place, along(foot)) });
    }),
    svg("line", { class: "arrow", ...ends(center, tip) }),
    svg("path", { class: "head", d: "M0,0l-11,-5v10z", transform: `translate(${tip}) rotate(${degrees(direction)})` }),
    svg("path", { class: "cross", d: `M${center[0] - 6},${center[1]}h12M${center[0]},${center[1] - 6}v12` }),
    svg("text", { x: center[0] + 8, y: center[1] + 14 }, "y"),
    svg("text", { x: 8, y: HEIGHT - 8 }, "channel 0 →, channel 1 ↑"),
  );
  plane.v.forEach((point, s) => {
    const place = view.out(point);
    const radius = 4 + 14 * Math.sqrt(plane.p[s]);
    const sign = found.dscores[s] > 0 ? "plus" : found.dscores[s] < 0 ? "minus" : "";
    const looks = `${sign}${s === plane.key ? " chosen" : ""}`;
    const moveTo = (to) => movePlane({ v: plane.v.with(s, to), dy: plane.dy });
    picture.append(handle({ id: `v${s}`, label: `value of key ${name(s)}`, point, place, radius, looks, view, moveTo }));
    picture.append(svg("text", { x: place[0] + radius + 3, y: place[1] + 4 }, name(s)));
  });
  const pointTo = (to, pixel) => {
    const dy = pixel ? [(pixel[0] - center[0]) / view.arrow, (center[1] - pixel[1]) / view.arrow] : to;
    movePlane({ v: plane.v, dy });
  };
  const share = view.unit / view.arrow;
  picture.append(handle({ id: "dy", label: "tip of dy", point: plane.dy, place: tip, radius: 10, looks: "tip", view, moveTo: pointTo, share }));
  const beyond = along(length + 14);
  picture.append(svg("text", { "x": beyond[0], "y": beyond[1] + 4, "text-anchor": "middle" }, "dy"));
  return picture;
}

// A point that can be dragged, and moved by the arrow keys. `moveTo` is told the new numbers and, when dragged, the place in the
// drawing. `share` is how far an arrow key moves it, against a value.
function handle({ id, label, point, place, radius, looks, view, moveTo, share = 1 }) {
  const found = svg("circle", {
    "class": `handle ${looks}`,
    "cx": place[0],
    "cy": place[1],
    "r": radius,
    "tabindex": 0,
    "data-handle": id,
    "role": "slider",
    "aria-label": label,
    "aria-valuenow": point[0].toFixed(3),
    "aria-valuetext": `${format(point[0])}, ${format(point[1])}`,
  });
  found.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const [down, right] = STEPS[event.key];
    const stride = ((STRIDE * HEIGHT) / view.unit) * share;
    moveTo([point[0] + right * stride, point[1] - down * stride]);
  });
  found.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    const box = found.ownerSVGElement.getBoundingClientRect();
    const drag = (now) => {
      const pixel = [((now.clientX - box.left) * WIDTH) / box.width, ((now.clientY - box.top) * HEIGHT) / box.height];
      moveTo(view.back(pixel), pixel);
    };
    addEventListener("pointermove", drag);
    addEventListener("pointerup", () => removeEventListener("pointermove", drag), { once: true });
    addEventListener("pointercancel", () => removeEventListener("pointermove", drag), { once: true });
  });
  return found;
}

// The same as numbers: p times the place along dy is dscores. The bars balance.
function planeTable(plane, found, name) {
  const most = Math.max(...found.dscores.map(Math.abs), 1e-30);
  const rows = found.dscores.map((x, s) => {
    const bar = make("span", { class: `bar ${x < 0 ? "minus" : "plus"}` });
    bar.style.setProperty("--much", (Math.abs(x) / most).toFixed(3));
    return make("tr", { class: s === plane.key ? "chosen" : null }, make("th", { scope: "row" }, name(s)),
      [plane.p[s], found.along[s], x].map((value) => make("td", {}, format(value))), make("td", {}, bar));
  });
  const future = [...data.text.slice(plane.query + 1, -1)].map((_, i) => make("tr", { class: "masked" },
    make("th", { scope: "row" }, name(plane.query + 1 + i)), make("td", {}, "0"), make("td", {}, "masked"), make("td", {}, "0"), make("td", {})));
  const total = found.dscores.reduce((sum, x) => sum + x, 0);
  const heads = ["key", "p", "dy · (v − y)", "dscores", "bar"].map((text) => make("th", { scope: "col" }, text));
  const sum = [make("th", { scope: "row", colspan: "3" }, "sum"), make("td", {}, formatSum(total, most)), make("td", {})];
  return make("table", { class: "plain" },
    make("caption", {}, "p × (dy · (v − y)) = dscores"),
    make("thead", {}, make("tr", {}, heads)),
    make("tbody", {}, rows, future),
    make("tfoot", {}, make("tr", {}, sum)));
}

function svg(tag, attributes, ...children) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

function degrees([x, y]) {
  return (Math.atan2(y, x) * 180) / Math.PI;
}

function ends([x1, y1], [x2, y2]) {
  return { x1, y1, x2, y2 };
}
