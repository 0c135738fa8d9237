"""What a page of the trace must show: checks that hold it against a recorded run. Each returns a list of what differs."""

import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        return "".join(f"{letter}{i}" for letter, i in self.indices(stop, flat).items())

    def cells(self, stop: Stop) -> list[str]:
        return [self.cell(stop, flat) for flat in range(self.size(stop))]

    def starts_of_tables(self, stop: Stop) -> range:
        """Where the tables of a stop begin, one for each head, and for each of q, k and v."""
        return range(0, self.size(stop), math.prod(self.shape(stop)[-2:]))

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
        return self.found_by(step, stop, flat, stop.formula.tree)

    def deciding(self, step: int, stop: Stop, flat: int) -> set[tuple[int, int]]:
        """The elements that the conditions of a cell's formula looked at."""
        tree, found = stop.formula.tree, set()
        while tree[0] == "if":
            found |= self.found_by(step, stop, flat, tree[1])
            tree = tree[2] if evaluate(tree[1], self.indices(stop, flat), self.environment(step, stop)) else tree[3]
        return found

    def found_by(self, step: int, stop: Stop, flat: int, tree: Any) -> set[tuple[int, int]]:
        arrays, reads = self.arrays_read(stop), []
        evaluate(tree, self.indices(stop, flat), self.environment(step, stop), reads)
        return {(arrays[name], place) for name, place in reads}

    def indices(self, stop: Stop, flat: int) -> dict[str, int]:
        index = np.unravel_index(flat, self.shape(stop)) if stop.formula.indices else ()
        return {letter: int(i) for letter, i in zip(stop.formula.indices, index, strict=True)}


# ---- how a number is written ----

NUMBER = re.compile(r"(\d+)(?:\.(\d+))?(?:e([+-]\d+))?")


@functools.cache
def read(text: str) -> tuple[float, float]:
    """Return the number that a text shows, and half a unit of its last digit: 0 for a whole number that is written out."""
    text = text.strip()
    if text in ("∞", "-∞"):
        return float(text.replace("∞", "inf")), 0.0
    found = NUMBER.fullmatch(text.removeprefix("-"))
    if not found:
        return np.nan, 0.0
    whole, decimals, exponent = found.groups()
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

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def ask(browser: Browser, function: str, *arguments: Any) -> Any:
    """Call a function of page_checks.js in the page."""
    return browser.script(f"{SCRIPT}\nreturn {function}(...arguments);", *arguments)


def shown(browser: Browser) -> dict[str, Any]:
    """Return what the page shows now."""
    return json.loads(ask(browser, "shown"))


def unlike_run(run: Run, page: Mapping[str, Any], at: str | None = None) -> list[str]:
    """Return where what is shown differs from what was recorded. at: the address without cell where the page should be."""
    where = page["address"]
    step, stop, flat = run.place(where)
    value = run.value(step, stop, flat)
    found = []
    if at not in (None, f"{step}/{stop.address}"):
        found.append(f"the page should be at {at}")
    if page["hash"] != where:
        found.append(f"the address in the URL is {page['hash']}")
    if page["overflow"] > 0:
        found.append(f"the page is {page['overflow']} pixels too wide")
    if page["value"] is None or not is_shown(page["value"], value):
        found.append(f"the value is {page['value']}, recorded {value}")
    found += unlike_arithmetic(page["arithmetic"], value)
    of_names = run.arrays_read(stop)
    expected = {stop.array} | {of_names[name] for name in names_read(stop.formula.tree)}
    if missing := expected - {table["array"] for table in page["tables"]}:
        found.append(f"there is no table of arrays {missing}")
    lit = run.reads(step, stop, flat) | run.deciding(step, stop, flat)
    for table in page["tables"]:
        array = table["array"]
        marked = {i for one, i in lit if one == array} if table["isRead"] else {flat}
        found += [f"array {array}{difference}" for difference in unlike_array(run, step, table, marked)]
    return [f"{where}: {difference}" for difference in found]


def names_read(tree: Any) -> set[str]:
    """The names of the arrays in an expression."""
    inner = [name for part in tree if isinstance(part, list) for name in names_read(part)]
    return {*inner, tree[1]} if tree and tree[0] == "at" else set(inner)


def unlike_array(run: Run, step: int, table: Mapping[str, Any], marked: set[int]) -> list[str]:
    """Return what differs in one table: numbers, signs, row sums, and which cells are marked as selected or as read."""
    if table["step"] != step:
        return [f" is shown of step {table['step']}"]
    cells, values = table["cells"], run.values(step, table["array"])
    found = [] if in_order(table, run.lengths(table["array"])) else [f": rows of {table['rows']} cells are not in order"]
    found += [f"[{i}] is {text}, recorded {values[i]}" for i, text, _ in cells if not is_shown(text, values[i])]
    found += [f"[{i}] = {values[i]} is marked {kind}" for i, _, kind in cells if not sign_is_shown(kind, values[i])]
    for row, text in table["sums"]:
        if not is_shown(text, float(np.sum(values[row]))):
            found.append(f": a row's sum is {text}, recorded {np.sum(values[row])}")
    name = "lit" if table["isRead"] else "selected"
    are = {i for i, _, kind in cells if name in kind.split()}
    if are != marked & {i for i, *_ in cells}:
        found.append(f": {name} are {sorted(are)}, not {sorted(marked)}")
    return found


def in_order(table: Mapping[str, Any], lengths: tuple[int, ...]) -> bool:
    """Whether the cells are one whole matrix of the array, row by row. A vector may stand upright."""
    places, rows = [i for i, *_ in table["cells"]], set(table["rows"])
    is_whole = places == list(range(places[0], places[0] + math.prod(lengths[-2:])))
    return is_whole and (rows == {lengths[-1]} if len(lengths) > 1 else rows in ({1}, set(lengths)))


# ---- the arithmetic of a formula with numbers in it ----


class Between:
    """A number that is known to lie between two others, because it was written in few digits."""

    def __init__(self, *ends: float) -> None:
        self.ends = min(ends), max(ends)

    @classmethod
    def of(cls, text: str) -> "Between":
        number, half = read(text)
        if np.isnan(number):  # a constant of the formula, such as 0.5
            return cls(float(text))
        return cls(number - half, number + half)

    def each(self, other: Any, operator: Callable[[float, float], float]) -> "Between":
        others = other.ends if isinstance(other, Between) else (other,)
        return Between(*(operator(a, b) for a in self.ends for b in others))

    def __neg__(self) -> "Between":
        return Between(*(-end for end in self.ends))

    def __add__(self, other: Any) -> "Between":
        return self.each(other, operator.add)

    def __sub__(self, other: Any) -> "Between":
        return self.each(other, operator.sub)

    def __mul__(self, other: Any) -> "Between":
        return self.each(other, operator.mul)

    def __truediv__(self, other: Any) -> "Between":
        return self.each(other, operator.truediv)


def rising(function: Callable[[float], float]) -> Callable[[Between], Between]:
    return lambda x: Between(*map(function, x.ends))


KNOWN = {name: rising(getattr(math, name)) for name in ("exp", "log", "sqrt", "tanh", "floor")}
KNOWN["max"] = lambda *terms: Between(max(term.ends[0] for term in terms), max(term.ends[1] for term in terms))
COMPARED = {"=": operator.eq, "<": operator.lt, "≤": operator.le, ">": operator.gt}  # of whole numbers
KNOWN["compared"] = lambda a, sign, b: Between(float(COMPARED[sign](a.ends, b.ends)))


def unlike_arithmetic(written: str | None, value: float) -> list[str]:
    """Return what is wrong in a formula with numbers in it: its two sides differ by more than the digits allow."""
    if written is None:
        return ["no formula with numbers"]
    text = re.sub("⟪.*?⟫", "", written)  # which branch was taken, and why
    text = re.sub("⟨ *(.*?) ([=<≤>]) (.*?) *⟩", r"compared(\1,'\2',\3)", text)
    *sides, right = text.split(" = ")
    if not is_shown(right.replace(" ", ""), value):
        return [f"the formula with numbers ends in {right}, recorded {value}"]
    if "element" in text:
        return []  # a line that only moves elements names the one that it takes
    try:
        left = eval(
            re.sub(r"\d[\d.]*(e[-+]?\d+)?", r"Between.of('\g<0>')", sides[0].replace("∞", "Between(math.inf)")), globals(), KNOWN
        )
    except Exception as error:
        return [f"the formula with numbers cannot be read: {written}: {error}"]
    low, high = left.ends
    return [] if low - EXACT <= value <= high + EXACT else [f"{written}: the left side is {low} to {high}"]


# ---- formulas that the page evaluates ----


def unlike_formulas(run: Run, browser: Browser, step: int, stops: Iterable[Stop] | None = None, every_read: int = 7) -> list[str]:
    """Return the cells whose value, formula or (of every few cells) sources differ from the recorded ones."""
    stops = list(run.stops if stops is None else stops)
    asked = [[f"{step}/{stop.address}", run.cells(stop)] for stop in stops]
    found = []
    for stop, cells in zip(stops, json.loads(ask(browser, "evaluated", asked, every_read)), strict=True):
        values = run.values(step, stop.array)
        recorded, evaluated = (np.array([float(cell[k]) for cell in cells]) for k in (0, 1))
        for name, numbers, near in (("value", recorded, EXACT), ("formula", evaluated, NEAR)):
            wrong = np.flatnonzero(~np.isclose(numbers, values, rtol=EXACT, atol=near))
            found += [f"{run.address(step, stop, i)}: {name} {numbers[i]}, recorded {values[i]}" for i in wrong]
        for i, (*_, reads) in enumerate(cells):
            if reads is not None and (page := set(map(tuple, reads))) != (expected := run.reads(step, stop, i)):
                found.append(f"{run.address(step, stop, i)}: reads differ in {sorted(page ^ expected)}")
    return found


# ---- walks ----


def walk(run: Run, browser: Browser, step: int, stops: Sequence[Stop], key: str) -> list[str]:
    """Go through these stops with a key, and return what differs from the run. The page is at the first of the stops."""
    found = []
    for place, stop in enumerate(stops):
        if place:
            browser.press(key)
        found += unlike_run(run, shown(browser), f"{step}/{stop.address}")
    return found


def jump(run: Run, browser: Browser, addresses: Sequence[str]) -> list[str]:
    """Jump from address to address, without drawing, and return what differs from the run."""
    pages = [json.loads(page) for page in ask(browser, "shownAt", addresses)]
    at = ["/".join(address.split("/")[:3]) for address in addresses]
    return [difference for page, stop in zip(pages, at, strict=True) for difference in unlike_run(run, page, stop)]
