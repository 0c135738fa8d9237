"""What a page of the trace must show: checks that hold it against a recorded run. Each returns a list of what differs."""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from browser import Browser
from gpt.trace import tape
from gpt.trace.formula import Parsed, evaluate, merge_axes
from gpt.trace.recorder import Call, Made
from gpt.trace.state import State

EXACT = 1e-12  # the page keeps 13 digits of a recorded value
NEAR = 1e-9  # a formula that the page evaluates, and the recorded value
ROUNDED = 1e-9  # of half a unit, for a value that lies between two decimals

# ---- what was recorded ----


@dataclass(frozen=True, eq=False, repr=False)
class Stop:
    """A value that a line makes by a formula, with its address without state and cell."""

    address: str
    call: Call
    made: Made
    formula: Parsed

    @property
    def array(self) -> int:
        return self.made.array


class Run:
    """The states of one recorded run, as the page must show them."""

    def __init__(self, states: Sequence[State]) -> None:
        self.states = {state.step: state for state in states}
        self.trace = states[0].trace
        self.pairs = tape.pair_calls(self.trace)
        self.names = tape.names(self.trace, self.pairs, states[0].parameters)
        self.stops = list(self.in_walking_order())
        self.by_address = {stop.address: stop for stop in self.stops}

    def in_walking_order(self) -> Iterator[Stop]:
        """Yield the stops of forward in order, then those of backward."""
        starts = [call.number for call in self.trace.calls if call.function.endswith("backward")]
        forward = [stop for call in self.trace.calls if call.number < starts[0] for stop in self.stops_of(call)]
        backward = [stop for call in self.trace.calls if call.number >= starts[0] for stop in self.stops_of(call)]
        yield from forward + backward

    def stops_of(self, call: Call) -> list[Stop]:
        """The last stop of a name has the name alone; the ones before it are name.1, name.2, and so on."""
        found = [(made, formula[1]) for made in call.made if (formula := tape.formula_of(call, made))]
        names = [formula.name for _, formula in found]
        stops = []
        for place, (made, formula) in enumerate(found):
            before = names[:place].count(formula.name)
            ending = "" if formula.name not in names[place + 1 :] else f".{before + 1}"
            stops.append(Stop(f"{self.names[call.number]}/{formula.name}{ending}", call, made, formula))
        return stops

    def values(self, step: int, array: int) -> np.ndarray:
        """All values of an array, flat."""
        return np.ravel(self.states[step].trace.arrays[array]).astype(float)

    def value(self, step: int, stop: Stop, flat: int) -> float:
        return float(self.values(step, stop.array)[flat])

    def shape(self, stop: Stop) -> tuple[int, ...]:
        """The shape as the formula of the stop indexes it."""
        return merge_axes(self.trace.arrays[stop.array], len(stop.formula.indices)).shape

    def lengths(self, array: int) -> tuple[int, ...]:
        """The shape of an array without its batch axis, which is 1 long."""
        return tuple(length for length in self.trace.arrays[array].shape if length != 1)

    def size(self, stop: Stop) -> int:
        return self.trace.arrays[stop.array].size

    def cell(self, stop: Stop, flat: int) -> str:
        """`h1t3s3`, or "" where the value is one number."""
        if not stop.formula.indices:
            return ""
        index = np.unravel_index(flat, self.shape(stop))
        return "".join(f"{letter}{i}" for letter, i in zip(stop.formula.indices, index, strict=True))

    def cells(self, stop: Stop) -> list[str]:
        return [self.cell(stop, flat) for flat in range(self.size(stop))]

    def address(self, step: int, stop: Stop, flat: int) -> str:
        return "/".join(filter(None, (str(step), stop.address, self.cell(stop, flat))))

    def place(self, address: str) -> tuple[int, Stop, int]:
        """The step, the stop and the flat place of an address."""
        step, call, name, cell = (address.split("/") + [""])[:4]
        stop = self.by_address[f"{call}/{name}"]
        index = tuple(int(i) for i in re.findall(r"\d+", cell))
        return int(step), stop, int(np.ravel_multi_index(index, self.shape(stop))) if index else 0

    def arrays_read(self, stop: Stop) -> dict[str, int]:
        """Which array each name on the line of a stop means."""
        arrays = dict(stop.call.arguments)
        for made in stop.call.made:
            if made.statement is stop.made.statement:
                break
            arrays[made.target.name] = made.array
        return arrays

    @functools.cache  # noqa: B019  a run lives as long as the tests
    def environment(self, step: int, stop: Stop) -> Mapping[str, Any]:
        calls = self.states[step].trace.calls
        call = calls[stop.call.number]
        return self.states[step].trace.environment(call, call.made[stop.call.made.index(stop.made)])

    def reads(self, step: int, stop: Stop, flat: int) -> set[tuple[int, int]]:
        """The elements that a cell was made from, as (array, flat place)."""
        arrays, reads = self.arrays_read(stop), []
        index = np.unravel_index(flat, self.shape(stop)) if stop.formula.indices else ()
        at = {letter: int(i) for letter, i in zip(stop.formula.indices, index, strict=True)}
        evaluate(stop.formula.tree, at, self.environment(step, stop), reads)
        return {(arrays[name], place) for name, place in reads}


# ---- how a number is written ----

NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?")


@functools.cache
def read(text: str) -> tuple[float, float]:
    """Return the number that a text shows, and half a unit of its last digit: 0 for a whole number that is written out."""
    text = text.strip().replace("−", "-")
    if text in ("∞", "-∞"):
        return float(text.replace("∞", "inf")), 0.0
    found = NUMBER.fullmatch(text)
    if not found:
        return np.nan, 0.0
    _, whole, decimals, exponent = found.groups()
    digits = (whole + (decimals or "")).lstrip("0")
    written_out = decimals is None and exponent is None and len(digits) < 4
    if not written_out and len(digits) != 4:
        return np.nan, 0.0  # not four significant digits
    unit = 10.0 ** (int(exponent or 0) - len(decimals or ""))
    return float(text), 0.0 if written_out else unit / 2


def is_shown(text: str, value: float) -> bool:
    """Whether a text shows a value in four significant digits."""
    number, half = read(text)
    if not np.isfinite(value):
        return number == value
    return abs(number - value) <= half * (1 + ROUNDED) + EXACT


def sign_is_shown(classes: str, value: float) -> bool:
    """Whether the classes of a cell say the sign of its value."""
    named = {"plus", "minus", "zero", "masked"} & set(classes.split())
    if abs(value) <= EXACT and value != 0:
        return len(named) == 1  # rounding alone
    right = "masked" if value == -np.inf else "plus" if value > 0 else "minus" if value < 0 else "zero"
    return named == {right}


# ---- what the page shows ----

SHOWN = """
const number = (one) => Number(one.dataset.i);
const cellsOf = (one) => [...one.querySelectorAll("td[data-i]")];
const sumsOf = (table) => [...table.querySelectorAll("td.sum")].map((sum) => [cellsOf(sum.parentElement).map(number), sum.textContent]);
const page = document.documentElement;
return JSON.stringify({
  address: trace.address(),
  hash: decodeURIComponent(location.hash.slice(1)),
  live: document.getElementById("live").textContent,
  value: document.querySelector("#cell [data-role=value]")?.textContent ?? null,
  overflow: page.scrollWidth - page.clientWidth,
  tables: [...document.querySelectorAll("table[data-array]")].map((table) => ({
    array: Number(table.dataset.array),
    step: Number(table.dataset.step),
    read: table.closest("#reads") !== null,
    rows: [...table.tBodies[0].rows].map((row) => cellsOf(row).length),
    cells: cellsOf(table).map((cell) => [number(cell), cell.textContent, cell.className]),
    sums: sumsOf(table),
  })),
});
"""


def shown(browser: Browser) -> dict[str, Any]:
    """Return what the page shows now."""
    return json.loads(browser.script(SHOWN))


def unlike_run(run: Run, page: Mapping[str, Any], at: str | None = None) -> list[str]:
    """Return where what is shown differs from what was recorded. at: the address without cell where the page should be."""
    where = page["address"]
    if at is not None and "/".join(where.split("/")[:3]) != at:
        return [f"{where}: the page should be at {at}"]
    step, stop, flat = run.place(where)
    found = [] if page["hash"] == where else [f"{where}: the address in the URL is {page['hash']}"]
    if page["overflow"] > 0:
        found.append(f"{where}: the page is {page['overflow']} pixels too wide")
    if page["value"] is None or not is_shown(page["value"], run.value(step, stop, flat)):
        found.append(f"{where}: the cell's value is {page['value']}, recorded {run.value(step, stop, flat)}")
    expected = {stop.array} | {run.arrays_read(stop)[name] for name in names_read(stop.formula.tree)}
    if missing := expected - {table["array"] for table in page["tables"]}:
        found.append(f"{where}: no table of arrays {missing}")
    reads = run.reads(step, stop, flat)
    for table in page["tables"]:
        found += [f"{where}: {difference}" for difference in unlike_array(run, step, stop, flat, reads, table)]
    return found


def names_read(tree: Any) -> set[str]:
    """The names of the arrays in an expression."""
    inner = [name for part in tree if isinstance(part, list) for name in names_read(part)]
    return {*inner, tree[1]} if tree and tree[0] == "at" else set(inner)


def unlike_array(run: Run, step: int, stop: Stop, flat: int, reads: set[tuple[int, int]], table: Mapping[str, Any]) -> list[str]:
    """Return what differs in one table: numbers, signs, row sums, the selected cell and the cells that are lit."""
    array, cells = table["array"], table["cells"]
    if table["step"] != step:
        return [f"array {array} is shown of step {table['step']}"]
    values = run.values(step, array)
    found = [] if in_order(table, run.lengths(array)) else [f"array {array}: rows of {table['rows']} cells are not in order"]
    found += [f"array {array}[{i}] is {text}, recorded {values[i]}" for i, text, _ in cells if not is_shown(text, values[i])]
    found += [f"array {array}[{i}] = {values[i]} is marked {kind}" for i, _, kind in cells if not sign_is_shown(kind, values[i])]
    for row, text in table["sums"]:
        if not is_shown(text, float(np.sum(values[row]))):
            found.append(f"array {array}: a row's sum is {text}, recorded {np.sum(values[row])}")
    name, marked = ("lit", {i for read, i in reads if read == array}) if table["read"] else ("selected", {flat})
    shown_so = {i for i, _, kind in cells if name in kind.split()}
    if shown_so != marked & {i for i, *_ in cells}:
        found.append(f"array {array}: {name} are {sorted(shown_so)}, not {sorted(marked)}")
    return found


def in_order(table: Mapping[str, Any], lengths: tuple[int, ...]) -> bool:
    """Whether the cells are one block of the array, row by row. A vector may stand upright."""
    places = [i for i, *_ in table["cells"]]
    rows = set(table["rows"])
    whole = places == list(range(places[0], places[0] + len(places)))
    return whole and (rows == {lengths[-1]} if len(lengths) > 1 else rows in ({1}, {lengths[0] if lengths else 1}))


# ---- formulas that the page evaluates ----

EVALUATED = """
const [stops, everyRead] = arguments;
const text = (x) => (Number.isFinite(x) ? x : String(x));
return JSON.stringify(stops.map(([stop, cells]) => cells.map((cell, i) => {
  const address = cell ? stop + "/" + cell : stop;
  return [text(trace.value(address)), text(trace.evaluate(address)), i % everyRead ? null : trace.reads(address)];
})));
"""


def unlike_formulas(run: Run, browser: Browser, step: int, stops: Iterable[Stop] | None = None, every_read: int = 7) -> list[str]:
    """Return the cells whose value, formula or (of every few cells) sources differ from the recorded ones."""
    stops = list(run.stops if stops is None else stops)
    asked = [[f"{step}/{stop.address}", run.cells(stop)] for stop in stops]
    found = []
    for stop, cells in zip(stops, json.loads(browser.script(EVALUATED, asked, every_read)), strict=True):
        values = run.values(step, stop.array)
        recorded, evaluated = (np.array([float(cell[k]) for cell in cells]) for k in (0, 1))
        for name, numbers, near in (("value", recorded, EXACT), ("formula", evaluated, NEAR)):
            wrong = np.flatnonzero(~np.isclose(numbers, values, rtol=EXACT, atol=near))
            found += [f"{run.address(step, stop, i)}: {name} {numbers[i]}, recorded {values[i]}" for i in wrong]
        for i, (*_, reads) in enumerate(cells):
            if reads is not None and (page := {tuple(read) for read in reads}) != (expected := run.reads(step, stop, i)):
                found.append(f"{run.address(step, stop, i)}: reads differ in {sorted(page ^ expected)}")
    return found


# ---- walks ----


def walk(run: Run, browser: Browser, step: int, stops: Sequence[Stop], key: str, seen: dict[int, set[int]]) -> list[str]:
    """Go through these stops with a key, through every head with the digits, and return what differs from the run.

    The page is at the first of the stops. seen: gets the cells that were shown, by array.
    """
    found = []
    for place, stop in enumerate(stops):
        if place:
            browser.press(key)
        for page in every_head(run, browser, stop):
            found += unlike_run(run, page, f"{step}/{stop.address}")
            for table in page["tables"]:
                seen.setdefault(table["array"], set()).update(i for i, *_ in table["cells"])
    return found


def every_head(run: Run, browser: Browser, stop: Stop) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of a stop, once for every head."""
    page = shown(browser)
    yield page
    if "h" not in stop.formula.indices:
        return
    axis = stop.formula.indices.index("h")
    here = re.search(r"h(\d+)", page["address"].split("/")[-1])
    for head in range(run.shape(stop)[axis]):
        if here is None or head != int(here[1]):
            browser.press(str(head + 1))
            yield shown(browser)


JUMPS = f"""
const show = () => {{ {SHOWN} }};
document.documentElement.hidden = true;
return arguments[0].map((address) => {{ trace.go(address); return show(); }});
"""


def jump(run: Run, browser: Browser, addresses: Sequence[str]) -> list[str]:
    """Jump from address to address, without drawing, and return what differs from the run."""
    pages = [json.loads(page) for page in browser.script(JUMPS, addresses)]
    at = ["/".join(address.split("/")[:3]) for address in addresses]
    return [each for page, stop in zip(pages, at, strict=True) for each in unlike_run(run, page, stop)]


# ---- everybody ----

TOO_WIDE = """
const tooWide = (address) => {
  trace.go(address);
  const over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (over <= 0) return [];
  const first = [...document.querySelectorAll("body *")].find((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  return [`${address}: ${over} pixels too wide: ${first?.outerHTML.slice(0, 200)}`];
};
return arguments[0].flatMap(tooWide);
"""


def too_wide(browser: Browser, addresses: Sequence[str]) -> list[str]:
    """Return the addresses at which the page can be scrolled sideways."""
    return browser.script(TOO_WIDE, addresses)


OBSTACLES = """
const done = arguments[0];
axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) =>
  done(violations.flatMap(({ id, help, nodes }) => nodes.map((node) => `${id}: ${help}: ${node.html}`))));
"""


def obstacles(browser: Browser) -> list[str]:
    """Return what axe-core finds on the page as it is now. Its script has been run in the page."""
    return browser.finish(OBSTACLES)


MOVING = """
const seconds = (text) => Math.max(...text.split(",").map((part) => parseFloat(part) * (part.includes("ms") ? 0.001 : 1)));
const moves = ({ scrollBehavior, transitionDuration, animationName, animationDuration }) =>
  scrollBehavior === "smooth" || seconds(transitionDuration) > 0.01 || (animationName !== "none" && seconds(animationDuration) > 0.01);
return [...document.querySelectorAll("*")].filter((one) => moves(getComputedStyle(one))).map((one) => one.outerHTML.slice(0, 100));
"""


def moving(browser: Browser) -> list[str]:
    """Return the elements that a style lets move for more than 10 milliseconds."""
    return browser.script(MOVING)
