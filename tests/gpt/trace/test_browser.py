"""The trace page in a real browser: every line by keys, every number, and no obstacle for anybody.

The page is held against a run that is recorded here, not against its own data. Chromium starts once per test process.
"""

import math
import re
import string

import numpy as np
import pytest

import browser
from gpt.trace import example
from gpt.trace.data import decode, encode, gradients_by_array
from gpt.trace.page import page, unpack
from gpt.trace.program import page_of
from gpt.trace.state import record
from page_checks import Run, ask, is_shown, jump, shown, unlike_formulas, unlike_run, walk
from paths import ROOT
from small import config_of, start
from traces import TEXT, VARIANTS, recorded

pytestmark = [pytest.mark.program, pytest.mark.browser]
FILE = ROOT / "docs" / "trace.html"
WIDE, PHONE, NARROW = (1280, 800), (390, 844), (320, 640)
DSCORES = "60/attention_backward/dscores/h1t3s3"
PLANES = ("attention_forward/probs", "attention_forward/y", "attention_backward/dscores", "softmax_backward/dx")


@pytest.fixture(scope="module")
def chromium():
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.started() as found:
        yield found


@pytest.fixture
def tab(chromium):
    """The browser with a wide, light screen. The test ends without a message on the console and any request but for its file."""
    chromium.set_screen(*WIDE)
    chromium.messages(), chromium.requests()
    yield chromium
    assert not chromium.messages()
    assert all(url.startswith("file://") and url.endswith(".html") for url in chromium.requests())


@pytest.fixture(scope="module")
def run():
    return Run(example.example(with_differences=False))


@pytest.fixture(scope="module")
def html():
    return FILE.read_text(encoding="utf-8")


def address(tab):
    return tab.script("return trace.address()")


def go(tab, to):
    tab.script("trace.go(arguments[0])", to)


def go_back(tab, to):
    """Press Backspace and wait until the page is back at an address."""
    tab.press("BACKSPACE")
    tab.wait("return trace.address() === arguments[0]", to)


def text_of(tab, role):
    """The text of one part of what is said about the cell, or None where it is not there."""
    return tab.script("return document.querySelector(`#cell [data-role=${arguments[0]}]`)?.textContent", role)


def press_until(tab, key, selector):
    """Press a key until the element that has the focus is one of a CSS selector."""
    for _ in range(200):
        if tab.script("return document.activeElement.matches(arguments[0])", selector):
            return
        tab.press(key)
    raise AssertionError(f"{key} does not lead to {selector}")


# ---- what is shown is what was recorded ----


def test_every_formula_gives_the_recorded_value_from_the_elements_that_python_reads(tab, run):
    tab.open(FILE)
    assert tab.script("return trace.stops") == [stop.address for stop in run.stops]
    assert not (unlike_formulas(run, tab, 60) + unlike_formulas(run, tab, 0, every_read=49))
    assert tab.requests() == [FILE.as_uri()]


@pytest.mark.long
def test_a_walk_by_keys_and_jumps_show_every_element_of_every_line(tab, run):
    """Forward and backward with j, some lines back with k; then jumps to the other heads, and through the other state."""
    tab.open(FILE, run.address(60, run.stops[0], 0))
    assert not (found := walk(run, tab, 60, run.stops, "j")), found
    end = address(tab)
    tab.press("j")
    assert address(tab) == end
    assert "last line" in shown(tab)["live"]
    assert not (found := walk(run, tab, 60, run.stops[:-9:-1], "k")), found
    assert not (found := jump(run, tab, [run.address(60, stop, i) for stop in run.stops for i in run.starts_of_tables(stop)])), (
        found
    )
    assert not (found := jump(run, tab, [run.address(0, stop, run.size(stop) * 2 // 3) for stop in run.stops])), found


@pytest.mark.long
def test_keys_change_the_state_and_the_side_and_come_back(tab, run):
    tab.open(FILE, DSCORES)
    gradient_of = gradients_by_array(run.trace, run.pairs)
    for name in (
        *("attention_backward/dscores", "attention_forward/scores", "linear_backward.fc/dw"),
        *("layernorm_backward.ln1/dx", "residual_forward.1/out", "add.ln1/sum"),
    ):
        stop = run.by_address[name]
        last = run.size(stop) - 1
        go(tab, run.address(60, stop, last))
        tab.press("[")
        assert not unlike_run(run, shown(tab), f"0/{name}")
        tab.press("]")
        assert not unlike_run(run, shown(tab), f"60/{name}")
        tab.press("x")
        step, other, flat = run.place(address(tab))
        linked = {value for gradient, value in gradient_of.items() if int(gradient) == stop.array}
        linked |= {int(gradient) for gradient, value in gradient_of.items() if value == stop.array}
        if linked & {one.array for one in run.stops}:
            assert (step, flat) == (60, last)
            assert other.array in linked
        else:  # the gradient of a parameter: the call of forward that took it
            assert run.pairs[stop.call.number] == other.call.number
        go_back(tab, run.address(60, stop, last))


@pytest.mark.long
def test_keys_move_in_the_table_and_follow_a_source(tab, run):
    tab.open(FILE, DSCORES)
    tab.script("document.querySelector('[data-key=next]').focus()")
    press_until(tab, "TAB", "td.selected")
    moves = {
        "ARROW_RIGHT": "h1t3s4",
        "ARROW_DOWN": "h1t4s4",
        "END": "h1t4s5",
        "HOME": "h1t4s0",
        "ARROW_LEFT": "h1t4s0",
        "ARROW_UP": "h1t3s0",
        "1": "h0t3s0",
        "4": "h3t3s0",
        "9": "h3t3s0",
    }
    for key, cell in moves.items():
        tab.press(key)
        seen = shown(tab)
        assert seen["address"] == f"60/attention_backward/dscores/{cell}", key
        assert not unlike_run(run, seen)
        head, query, key_place = re.findall(r"\d", cell)
        sign = {-1: "negative", 0: "exactly 0", 1: "positive"}[np.sign(run.value(*run.place(seen["address"])))]
        told = rf"dscores, head {head}, query \w+ {query}, key \w+ {key_place}: {re.escape(seen['value'])}, {sign}"
        assert re.fullmatch(told, seen["live"])
    here = address(tab)
    press_until(tab, "TAB", "#reads td.lit")
    followed = tab.script(
        "const cell = document.activeElement; return [Number(cell.closest('table').dataset.array), Number(cell.dataset.i)]"
    )
    tab.press("ENTER")
    _, stop, flat = run.place(address(tab))
    assert [stop.array, flat] == followed
    go_back(tab, here)


@pytest.mark.long
def test_keys_do_nothing_with_a_modifier_or_in_the_help(tab):
    tab.open(FILE, DSCORES)
    for modifier in ("CONTROL", "ALT", "META"):
        tab.press("x", "k", holding=modifier)
    assert address(tab) == DSCORES
    tab.press("?")
    is_open = "return document.getElementById('help').open"
    assert tab.script(is_open)
    tab.press("j", "x")
    assert address(tab) == DSCORES
    tab.press("ESCAPE")
    assert not tab.script(is_open)
    tab.wait("return document.activeElement.closest('dialog') === null")
    tab.press("x")
    assert address(tab) == "60/attention_forward/scores/h1t3s3"


# ---- one cell ----


def test_a_cell_shows_its_value_difference_formula_and_numbers(tab, html, run):
    tab.open(FILE, DSCORES)
    assert address(tab) == DSCORES
    assert not unlike_run(run, shown(tab))
    step, stop, flat = run.place(DSCORES)
    value = run.value(step, stop, flat)
    formula = tab.script("return document.querySelector('#cell [data-role=formula] math').getAttribute('alttext')")
    assert formula == "dscores[h,t,s] = probs[h,t,s] * (dprobs[h,t,s] - Sum(j, dprobs[h,t,j] * probs[h,t,j]))"
    assert "each row sums to 0" in text_of(tab, "means")
    backward, difference = map(float, re.findall(r"-?\d+\.\d+", text_of(tab, "difference"))[:2])
    assert math.isclose(backward, value, rel_tol=1e-6)
    assert math.isclose(difference, value + error_of(unpack(html), stop.array, flat), rel_tol=1e-6)
    assert math.isclose(difference, value, abs_tol=1e-7)

    names = run.environment(step, stop)
    probs, dprobs = (np.squeeze(names[name], axis=0)[1, 3] for name in ("probs", "dprobs"))
    terms = [x for pair in zip(dprobs, probs, strict=True) for x in pair]
    numbers = tab.script("return [...document.querySelectorAll('#cell [data-role=substituted] mn')].map((one) => one.textContent)")
    for text, x in zip(numbers, (probs[3], dprobs[3], *terms, value), strict=True):
        assert is_shown(text, abs(x))
    for key, role in (("s", "substituted"), ("f", "difference")):
        before = text_of(tab, role)
        tab.press(key)
        assert text_of(tab, role) is None
        tab.press(key)
        assert text_of(tab, role) == before


def error_of(data, array, flat):
    """How far the finite difference beside an element is from it, by the page's data."""
    before = data["differences"][: data["differences"].index(array)]
    at = sum(math.prod(data["arrays"][one]["shape"]) for one in before)
    return float(decode(data["states"][1]["errors"], "<f4")[at + flat])


@pytest.mark.long
def test_sources_and_uses_of_a_cell_can_be_followed_and_left_again(tab, run):
    tab.open(FILE, DSCORES)
    step, stop, flat = run.place(DSCORES)
    readers = [other for other in run.stops if stop.array in run.arrays_read(other).values()]
    uses = {(one.array, i) for one in readers for i in range(run.size(one)) if (stop.array, flat) in run.reads(step, one, i)}
    for role, expected in (("sources", run.reads(step, stop, flat)), ("uses", uses)):
        buttons = f"#cell [data-role={role}] button"
        found = set()
        for place in range(tab.script("return document.querySelectorAll(arguments[0]).length", buttons)):
            tab.script("document.querySelectorAll(arguments[0])[arguments[1]].click()", buttons, place)
            _, other, i = run.place(address(tab))
            found.add((other.array, i))
            go_back(tab, DSCORES)
        assert found == expected, role
    tab.click(buttons)  # and one with the mouse
    assert not unlike_run(run, shown(tab))
    assert address(tab) != DSCORES
    go_back(tab, DSCORES)


@pytest.mark.long
def test_a_number_is_hidden_until_its_sign_is_predicted(tab, run):
    tab.open(FILE, DSCORES)
    is_anywhere, digits = "return document.body.innerHTML.includes(arguments[0])", shown(tab)["value"].lstrip("-")
    assert tab.script(is_anywhere, digits)
    tab.press("p")
    assert not tab.script(is_anywhere, digits)
    q = run.by_address["attention_forward/q"]
    above = run.address(60, q, int(np.argmax(run.values(60, q.array))))  # a positive number, in forward
    for place, right, score in ((DSCORES, True, "1 of 1"), (above, False, "1 of 2")):
        go(tab, place)
        assert (shown(tab)["value"], text_of(tab, "substituted"), text_of(tab, "sources")) == (None, None, None)
        assert "hidden" in shown(tab)["live"]
        choice = "[...document.querySelectorAll('#cell button')].find((one) => one.textContent.trim() === 'negative')"
        tab.script(f"{choice}.click()")
        assert not unlike_run(run, shown(tab))
        said = tab.script("return document.getElementById('cell').textContent")
        assert ("Right" in said) == right
        assert score in said
        tab.press("[")
        assert shown(tab)["value"] is None, "the other state's number is hidden still"
    tab.press("p")
    assert not unlike_run(run, shown(tab))


@pytest.mark.long
def test_the_value_plane_shows_dscores_as_weights_times_places_along_dy(tab, run):
    tab.open(FILE, DSCORES)
    for stop in PLANES:
        for head, query in ((1, 3), (3, 5), (0, 0)):
            cell = f"t{query}e{head * 2}" if stop.endswith("/y") else f"h{head}t{query}s0"
            go(tab, f"60/{stop}/{cell}")
            assert not unlike_plane(run, tab, head, query)
    go(tab, DSCORES)
    for handle, leave in (("v1", lambda: tab.click("#plane button.reset")), ("dy", lambda: tab.press("j", "k"))):
        tab.script("document.querySelector(`#plane [data-handle=${arguments[0]}]`).focus()", handle)
        tab.press("ARROW_RIGHT", "ARROW_UP")
        assert unlike_plane(run, tab, 1, 3)
        assert float(ask(tab, "plane")["rows"][-1][-1]) == 0, "the bars balance wherever the points are"
        leave()
        assert not unlike_plane(run, tab, 1, 3)
    tab.drag("#plane [data-handle=v0]", 30, 20)
    assert unlike_plane(run, tab, 1, 3)


def unlike_plane(run, tab, head, query):
    """Where the table of the value plane differs from the recorded run."""
    names = run.environment(60, run.by_address["attention_backward/dscores"])
    v, dy, probs = (np.squeeze(names[name], axis=0)[head] for name in ("v", "dy", "probs"))
    p, v, dy = probs[query, : query + 1], v[: query + 1], dy[query]
    along = (v - p @ v) @ dy
    dscores = run.values(60, run.by_address["attention_backward/dscores"].array).reshape(4, 6, 6)[head, query, : query + 1]
    np.testing.assert_allclose(p * along, dscores, rtol=0, atol=1e-9)
    plane = ask(tab, "plane")
    *rows, total = plane["rows"]
    visible, future = rows[: query + 1], rows[query + 1 :]
    masked = [[letter, "0", "masked", "0"] for letter in ("o0", "r1", "␣2", "n3", "o4", "t5")[query + 1 :]]
    found = [] if future == masked else [f"masked are {future}"]
    found += [] if float(total[-1]) == 0 else [f"the sum is {total}"]
    for row, *numbers in zip(visible, p, along, dscores, strict=True):
        found += [f"{row}: {text} for {x}" for text, x in zip(row[1:4], numbers, strict=True) if not is_shown(text, x)]
    for (kind, much), x in zip(plane["bars"], dscores, strict=True):
        if abs(much - abs(x) / max(abs(dscores).max(), 1e-30)) > 1e-3 or ("minus" in kind) != (x < 0):
            found.append(f"bar {kind} {much} for {x}")
    return found


# ---- addresses ----


def test_a_newcomer_sees_questions_that_lead_to_cells(tab, run):
    tab.open(FILE)
    assert tab.script("return scrollY") == 0
    assert not unlike_run(run, shown(tab) | {"hash": address(tab)})
    links = ask(tab, "links", "#about a[href^='#']")
    questions = " ".join(text for text, _ in links if text.endswith("?"))
    assert all(about in questions for about in ("rows of dscores sum to 0", "sqrt(D)", "masked", "gradients add", "used twice"))
    for _, hash in links:
        assert run.address(*run.place(hash)) == hash
        tab.script("location.hash = arguments[0]", hash)
        tab.wait("return trace.address() === arguments[0]", hash)
        assert not unlike_run(run, shown(tab))
    calls = ask(tab, "links", "#tape a[data-call]")
    assert {call for call, _ in calls} == {run.names[stop.call.number] for stop in run.stops}
    for call, hash in calls:
        _, of, name = hash.split("/")[:3]
        assert of == call
        assert f"{of}/{name}" in run.by_address


@pytest.mark.long
def test_the_address_of_a_cell_opens_it_again(tab, run):
    for name in ("cross_entropy_forward/loss", "attention_backward/dqkv.1"):
        tab.open(FILE)
        stop = run.by_address[name]
        expected = run.address(0, stop, run.size(stop) - 1)
        go(tab, expected)
        tab.open(FILE, tab.script("return location.hash.slice(1)"))
        assert address(tab) == expected
        assert not unlike_run(run, shown(tab))


@pytest.mark.long
def test_an_unknown_address_shows_the_nearest_place_and_says_so(tab, run):
    wanted = {
        "60/attention_backward/dscores/%E0%A4%A": "60/attention_backward/dscores/",
        "60/nothing/at/all": "60/attention_backward/dscores/",
        "60/attention_backward/dscores_of_old/h1t3s3": "60/attention_backward/",
        "7/attention_backward/dscores/h1t3s3": "60/attention_backward/dscores/h1t3s3",
        "60/attention_backward/dscores/h1t99s3": "60/attention_backward/dscores/h1t5s3",
        "nothing": "60/attention_backward/dscores/",
        "%00/%00/%00": "60/attention_backward/dscores/",
        "////": "60/attention_backward/dscores/",
    }
    for place, (at, near) in enumerate(wanted.items()):
        if place < 2:
            tab.open(FILE, at)
        else:
            go(tab, "60/cross_entropy_forward/loss")
            tab.script("location.hash = arguments[0]", at)
            tab.wait("return !trace.address().endsWith('loss')")
        seen = shown(tab)
        assert seen["address"].startswith(near), at
        assert "This page has no" in seen["live"], at
        assert not unlike_run(run, seen)
    tab.script("location.hash = '60/layernorm_backward.ln1'")  # a call alone is an address
    tab.wait("return trace.address().startsWith('60/layernorm_backward.ln1/')")


# ---- everybody ----


AT_START, LARGE, PREDICTED, HELP = "at the start", "at a large table", "where a number is to be predicted", "in the help"


@pytest.mark.long
@pytest.mark.parametrize(
    ("screen", "dark", "places"),
    [
        (WIDE, False, (AT_START, LARGE, PREDICTED, HELP)),
        (PHONE, True, (AT_START, PREDICTED, HELP)),
        (WIDE, True, (LARGE,)),
        (PHONE, False, (PREDICTED,)),
    ],
    ids=["wide and light", "phone and dark", "wide and dark", "phone and light"],
)
def test_axe_finds_no_obstacle(tab, screen, dark, places):
    if not (axe := browser.axe()):
        pytest.skip("axe-core is not installed (pip install --no-deps axe-playwright-python)")
    steps = {
        AT_START: lambda: None,
        LARGE: lambda: go(tab, "60/linear_backward.fc/dw/c3d3"),
        PREDICTED: lambda: (go(tab, DSCORES), tab.press("p")),
        HELP: lambda: tab.press("?"),
    }
    tab.set_screen(*screen, dark=dark)
    tab.open(FILE)
    tab.script(axe)
    for place in places:
        steps[place]()
        assert not ask(tab, "obstacles"), place


@pytest.mark.long
@pytest.mark.parametrize("screen", [NARROW, PHONE], ids=["narrow", "phone"])
def test_no_stop_is_too_wide(tab, run, screen):
    """Each stop at one of two widths. The walk sees them all in a wide window."""
    tab.set_screen(*screen)
    tab.open(FILE)
    stops = run.stops[screen == PHONE :: 2]
    assert not ask(tab, "tooWide", [f"60/{stop.address}" for stop in stops])


@pytest.mark.long
def test_a_finger_is_enough_and_the_buttons_stay_in_reach(tab, run):
    tab.set_screen(*PHONE)
    tab.open(FILE, DSCORES)
    tab.tap("#line td[data-i='61']")
    assert address(tab) == "60/attention_backward/dscores/h1t4s1"
    for name, stop in (("next", "dq"), ("previous", "dscores"), ("pair", "scores"), ("back", "dscores")):
        assert is_in_reach(tab, f"[data-key={name}]")
        tab.tap(f"[data-key={name}]")
        tab.wait("return trace.address().split('/')[2] === arguments[0]", stop)
        assert not unlike_run(run, shown(tab))
    tab.set_screen(*WIDE)
    assert is_in_reach(tab, "[data-key=next]")


def is_in_reach(tab, selector):
    """Whether an element is on the screen at the end of the page, too."""
    tab.script("scrollTo(0, document.body.scrollHeight)")
    box = "const { top, bottom } = document.querySelector(arguments[0]).getBoundingClientRect();"
    return tab.script(f"{box} return 0 <= top && top < bottom && bottom <= innerHeight", selector)


@pytest.mark.long
def test_nothing_moves_where_motion_is_to_be_reduced(tab):
    tab.set_screen(*WIDE, still=True)
    tab.open(FILE, DSCORES)
    assert not ask(tab, "moving")


@pytest.mark.long
def test_tables_have_captions_and_headers_with_the_characters(tab):
    tab.open(FILE, DSCORES)
    tables = ask(tab, "headers")
    assert all(table["caption"] and table["areScoped"] for table in tables)
    assert "dscores" in tables[0]["caption"]
    for i, (label, letter) in enumerate(zip(tables[0]["rows"], "or not", strict=True)):
        assert label[-1] == str(i)
        assert label[:-1].strip(), "a space has a mark that can be seen"
        assert label[:-1] == letter or letter == " "


@pytest.mark.long
def test_without_scripts_the_derivations_are_there(tab, html):
    with tab.without_scripts():
        tab.open(FILE, ready="return document.readyState === 'complete'")
        text = " ".join(tab.driver.find_element("tag name", "noscript").text.split())
    for function in unpack(html)["functions"].values():
        shown_texts = [formula["text"] for formula in function["formulas"]] + [step for _, step in function["derivation"]]
        assert all(" ".join(one.split()) in text for one in shown_texts)


# ---- pages of other models ----


def one_block_of_65_characters():
    """A context of 8, and heads of 4 channels, which are not drawn in a plane."""
    vocabulary = "\n " + string.ascii_letters + string.digits + "."
    config = config_of("gpt", vocab_size=len(vocabulary), block_size=8, n_layer=1, n_head=2, n_embd=8)
    text = "a b\nA9 b."
    return config, vocabulary, text, record(config, start(config, std=0.5).params, vocabulary, text, 0, with_differences=False)


def variant(name):
    config = config_of(**VARIANTS[name])
    return config, string.ascii_lowercase[: config.vocab_size], TEXT, recorded(name)


@pytest.mark.long
@pytest.mark.parametrize("name", ["bigram", "head", "gpt-2-blocks-relu", "gpt-tied-without-biases", "65 characters"])
def test_the_page_of_another_model(tab, tmp_path, name):
    config, vocabulary, text, state = one_block_of_65_characters() if name == "65 characters" else variant(name)
    run, file = Run([state]), tmp_path / "other.html"
    file.write_text(page_of(config, vocabulary, text, [state]), encoding="utf-8")
    tab.open(file)
    assert tab.script("return trace.stops") == [stop.address for stop in run.stops]
    assert not (found := unlike_formulas(run, tab, 0, every_read=29)), found
    assert not (found := jump(run, tab, [run.address(0, stop, run.size(stop) // 2) for stop in run.stops[::5]])), found
    for stop in run.stops:
        if f"{stop.call.function}/{stop.formula.name}" in PLANES:
            go(tab, f"0/{stop.address}")
            assert tab.script("return document.querySelector('#plane').hidden") == (config.n_embd // config.n_head != 2)


# ---- mistakes in a page are found ----


def changed_number(data, array):
    """Make the first number of an array 1% larger: less than a shade of its colour."""
    numbers = decode(data["states"][1]["numbers"], "<f8")
    numbers[data["arrays"][array]["at"]] *= 1.01
    data["states"][1]["numbers"] = encode(numbers)


def test_mistakes_in_the_data_are_found(chromium, tmp_path, html, run):
    data = unpack(html)
    changed_number(data, run.by_address["layernorm_forward.ln2/y"].array)  # a number
    attention, softmax = (data["functions"][name]["formulas"] for name in ("attention_backward", "softmax_backward"))
    dk = next(formula for formula in attention if formula["name"] == "dk")
    q = dk["tree"][1][2][2]
    assert q == ["at", "q", [["name", "h"], ["name", "t"], ["name", "d"]]]
    q[2][1][1] = "s"  # an index
    assert softmax[0]["tree"][2][0] == "-"
    softmax[0]["tree"][2][0] = "+"  # a sign
    file = tmp_path / "wrong.html"
    file.write_text(page(data), encoding="utf-8")
    chromium.open(file)
    mistakes = {  # the stop, what its formulas tell, and what its table and its cell tell
        "layernorm_forward.ln2/y/t0c0": (": value", r"array \d+\[0\] is \S+, recorded"),
        "attention_backward/dk/h1s3d1": (": reads differ", "lit are"),
        "softmax_backward/dx/h1t3s2": (": formula", "the left side is"),
    }
    for place, (in_formulas, in_page) in mistakes.items():
        stop = run.by_address[place.rpartition("/")[0]]
        assert any(in_formulas in found for found in unlike_formulas(run, chromium, 60, [stop])), place
        assert any(re.search(in_page, found) for found in jump(run, chromium, [f"60/{place}"])), place
    right = run.by_address["linear_forward.head/y"]
    assert not unlike_formulas(run, chromium, 60, [right])
    assert not jump(run, chromium, [run.address(60, right, 0)])


MISTAKES = {
    "the colour of a positive number": ('"plus" : x < 0 ? "minus"', '"minus" : x < 0 ? "plus"', "is marked"),
    "rows for columns": ("start + r * columns + c", "start + c * columns + r", "not in order"),
    "three digits": ("x.toPrecision(4)", "x.toPrecision(3)", "recorded"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_script_is_found(chromium, tmp_path, html, run, name):
    right, wrong, told = MISTAKES[name]
    assert html.count(right) == 1
    file = tmp_path / "wrong.html"
    file.write_text(html.replace(right, wrong), encoding="utf-8")
    chromium.open(file)
    assert any(told in found for found in jump(run, chromium, [DSCORES]))


@pytest.mark.long
def test_an_unkind_page_is_found(chromium, tmp_path, html):
    policy = re.search("<meta http-equiv[^>]*>", html)[0]
    changes = {
        '<html lang="en">': "<html>",
        policy: '<img src="https://example.org/a.png" alt="">',
        "</style>": "main { min-width: 500px; } td { transition: color 1s; }</style>",
        '"use strict";': '"use strict"; console.error("oh");',
    }
    for right, wrong in changes.items():
        assert html.count(right) == 1
        html = html.replace(right, wrong)
    file = tmp_path / "wrong.html"
    file.write_text(html, encoding="utf-8")
    chromium.set_screen(*PHONE, still=True)
    chromium.open(file, DSCORES)
    assert ask(chromium, "tooWide", [DSCORES])
    assert ask(chromium, "moving")
    assert any("oh" in message for message in chromium.messages())
    assert "https://example.org/a.png" in chromium.requests()
    if axe := browser.axe():
        chromium.script(axe)
        assert any("html-has-lang" in obstacle for obstacle in ask(chromium, "obstacles"))
