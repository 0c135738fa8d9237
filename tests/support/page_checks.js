// What page_checks.py asks a page of the trace. These functions are put before each script that it runs there.

// All that the checks look at, as text. A page of many numbers is faster told as one string.
function shown() {
  const { scrollWidth, clientWidth } = document.documentElement;
  return JSON.stringify({
    address: trace.address(),
    hash: decodeURIComponent(location.hash.slice(1)),
    live: document.getElementById("live").textContent,
    value: document.querySelector("#cell [data-role=value]")?.textContent ?? null,
    arithmetic: arithmetic(document.querySelector("#cell [data-role=substituted] math")),
    overflow: scrollWidth - clientWidth,
    tables: [...document.querySelectorAll("table[data-array]")].map(tableShown),
  });
}

function tableShown(table) {
  const place = (cell) => Number(cell.dataset.i);
  const cells = (part) => [...part.querySelectorAll("td[data-i]")];
  return {
    array: Number(table.dataset.array),
    step: Number(table.dataset.step),
    isRead: table.closest("#reads") !== null,
    rows: [...table.tBodies[0].rows].map((row) => cells(row).length),
    cells: cells(table).map((cell) => [place(cell), cell.textContent, cell.className]),
    sums: [...table.querySelectorAll("td.sum")].map((sum) => [cells(sum.parentElement).map(place), sum.textContent]),
  };
}

// Mathematics with numbers as a line of Python, or null where there is none. A comparison stands between ⟨ and ⟩, what says which
// condition held between ⟪ and ⟫, and an element that is only moved is called `element`.
function arithmetic(math) {
  const signs = { "\u2212": "-", "\u00d7": "*", "mod": "%", "⌊": "floor(", "⌋": ")", "[": "⟨", "]": "⟩" };
  const written = {
    mn: ({ textContent }) => textContent,
    mi: ({ textContent }) => textContent,
    mo: ({ textContent }) => signs[textContent] ?? textContent,
    mtext: ({ textContent }) => (textContent.includes("since") ? "⟪" : /holds|is false/.test(textContent) ? "⟫" : ""),
    msub: () => "element",
    mfrac: (_, [above, below]) => `((${above})/(${below}))`,
    msqrt: (_, parts) => `sqrt(${parts.join(" ")})`,
    mtable: (table, parts) => (table.matches(".terms") ? `(${parts.join(" ")})` : parts.join(" ")),
  };
  const write = (part) => (written[part.localName] ?? ((_, parts) => parts.join(" ")))(part, [...part.children].map(write));
  return math && write(math);
}

// What is shown at each of these addresses. Nothing is drawn, which is much faster.
function shownAt(addresses) {
  document.documentElement.hidden = true;
  const found = addresses.map((address) => {
    trace.go(address);
    return shown();
  });
  document.documentElement.hidden = false;
  return found;
}

// The value, the evaluated formula and, of every few cells, the sources of all cells of these stops: [address, cells] each.
function evaluated(stops, everyRead) {
  const text = (x) => (Number.isFinite(x) ? x : String(x));
  return JSON.stringify(stops.map(([stop, cells]) => cells.map((cell, i) => {
    const address = cell ? `${stop}/${cell}` : stop;
    return [text(trace.value(address)), text(trace.evaluate(address)), i % everyRead ? null : trace.reads(address)];
  })));
}

// The addresses at which the page can be scrolled sideways, each with the first element that is cut off.
function tooWide(addresses) {
  const page = document.documentElement;
  return addresses.flatMap((address) => {
    trace.go(address);
    const over = page.scrollWidth - page.clientWidth;
    if (over <= 0) return [];
    const first = [...document.querySelectorAll("body *")].find((one) => one.getBoundingClientRect().right > page.clientWidth + 1);
    return [`${address}: ${over} pixels too wide: ${first?.outerHTML.slice(0, 200)}`];
  });
}

// What axe-core finds on the page as it is now.
async function obstacles() {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, help, nodes }) => nodes.map((node) => `${id}: ${help}: ${node.html}`));
}

// The elements that a style lets move for more than 10 milliseconds.
function moving() {
  const seconds = (text) => Math.max(...text.split(",").map((part) => parseFloat(part) * (part.includes("ms") ? 0.001 : 1)));
  const moves = ({ scrollBehavior, transitionDuration, animationName, animationDuration }) =>
    scrollBehavior === "smooth" || seconds(transitionDuration) > 0.01 || (animationName !== "none" && seconds(animationDuration) > 0.01);
  return [...document.querySelectorAll("*")].filter((one) => moves(getComputedStyle(one))).map((one) => one.outerHTML.slice(0, 100));
}

// The rows of the value plane's table, and its bars as [class, length].
function plane() {
  const rows = document.querySelectorAll("#plane table :is(tbody, tfoot) tr");
  const bars = document.querySelectorAll("#plane .bar");
  return {
    rows: [...rows].map((row) => [...row.children].map((cell) => cell.textContent).filter(Boolean)),
    bars: [...bars].map((bar) => [bar.className, Number(bar.style.getPropertyValue("--much"))]),
  };
}

// What a screen reader is told of the tables.
function headers() {
  return [...document.querySelectorAll("table[data-array]")].map((table) => ({
    caption: table.caption?.textContent,
    areScoped: [...table.querySelectorAll("th")].every((header) => header.scope),
    rows: [...table.querySelectorAll("tbody th")].map((header) => header.textContent),
  }));
}

// Links to places in the page: [their text or name, where they lead].
function links(selector) {
  return [...document.querySelectorAll(selector)].map((link) => [link.dataset.call ?? link.textContent, link.hash.slice(1)]);
}
