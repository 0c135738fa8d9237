"""The page of a trace in a real browser: every stop by keys, every number, formula and source, and no obstacle for anybody.

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
from page_checks import EXACT, Run, is_shown, jump, moving, obstacles, read, shown, too_wide, unlike_formulas, unlike_run, walk
from paths import ROOT
from small import config_of, start
from traces import TEXT, VARIANTS, recorded

pytestmark = pytest.mark.program
COMMITTED = ROOT / "docs" / "trace.html"
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
def file(tmp_path_factory):
    if COMMITTED.exists():
        return COMMITTED
    made = tmp_path_factory.mktemp("trace") / "trace.html"
    made.write_text(page_of(example.MODEL, example.VOCABULARY, example.WINDOW, example.example()), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def html(file):
    return file.read_text(encoding="utf-8")


def address(tab):
    return tab.script("return trace.address()")


def go_back(tab, to):
    """Press Backspace and wait until the page is back at an address."""
    tab.press("BACKSPACE")
    tab.wait("return trace.address() === arguments[0]", to)


# ---- what is shown is what was recorded ----


def test_every_formula_gives_the_recorded_value_from_the_elements_that_python_reads(tab, file, run):
    tab.open(file)
    assert tab.script("return trace.stops") == [stop.address for stop in run.stops]
    assert not unlike_formulas(run, tab, 60)
    assert not unlike_formulas(run, tab, 0, every_read=49)


@pytest.mark.long
@pytest.mark.parametrize(("step", "key"), [(0, "j"), (60, "k")])
def test_a_walk_by_keys_shows_every_element_of_every_line(tab, file, run, step, key):
    """Forward and backward with j, or the other way round with k, through every head, in a window of 1280 pixels."""
    stops = run.stops if key == "j" else run.stops[::-1]
    tab.open(file, run.address(step, stops[0], 0))
    seen = {}
    assert not walk(run, tab, step, stops, key, seen)
    unseen = {stop.address for stop in stops if len(seen[stop.array]) < run.size(stop)}
    assert unseen <= {"attention_backward/dqkv.1"}  # dq, dk and dv stacked: the next line shows them all
    end = address(tab)
    tab.press(key)
    assert address(tab) == end
    assert re.search("last|first", shown(tab)["live"])
    assert tab.requests() == [file.resolve().as_uri()]


@pytest.mark.long
def test_keys_change_the_state_the_side_and_the_way_back(tab, file, run):
    tab.open(file, DSCORES)
    gradient_of = gradients_by_array(run.trace, run.pairs)
    n_linked = 0
    for stop in run.stops[::5]:
        tab.script("trace.go(arguments[0])", run.address(60, stop, run.size(stop) - 1))
        here = address(tab)
        tab.press("[")
        assert not unlike_run(run, page := shown(tab)) and page["address"] == here.replace("60/", "0/", 1)
        tab.press("]")
        assert not unlike_run(run, page := shown(tab)) and page["address"] == here
        tab.press("x")
        if address(tab) == here:  # a line without another side, such as an add
            assert "no other side" in shown(tab)["live"]
            continue
        step, other, flat = run.place(address(tab))
        assert step == 60
        assert is_backward(run, other) != is_backward(run, stop)
        if value := gradient_of.get(str(stop.array)):
            assert other.array == value or other.call.number == run.pairs[stop.call.number]
            n_linked += other.array == value and flat == run.size(stop) - 1
        go_back(tab, here)
    assert n_linked > 5


def is_backward(run, stop):
    return any(run.stops.index(stop) >= run.stops.index(other) for other in run.stops if other.call.number in run.pairs)


@pytest.mark.long
def test_keys_move_in_the_table_and_follow_a_source(tab, file, run):
    tab.open(file, DSCORES)
    for _ in range(80):
        if tab.script("return document.activeElement.matches('td[data-i]')"):
            break
        tab.press("TAB")
    assert tab.script("return document.activeElement.classList.contains('selected')")
    dscores, read_from = run.by_address["attention_backward/dscores"], set()
    moves = {
        "ARROW_RIGHT": "h1t3s4", "ARROW_DOWN": "h1t4s4", "END": "h1t4s5", "HOME": "h1t4s0", "ARROW_LEFT": "h1t4s0",
        "ARROW_UP": "h1t3s0", "1": "h0t3s0", "4": "h3t3s0", "9": "h3t3s0",
    }  # fmt: skip
    for key, cell in moves.items():
        tab.press(key)
        page = shown(tab)
        assert page["address"] == f"60/attention_backward/dscores/{cell}", key
        assert not unlike_run(run, page)
        value = run.value(60, dscores, run.place(page["address"])[2])
        assert re.search(
            rf"dscores, head \d, .*: {re.escape(page['value'])}, {'negative' if value < 0 else 'positive' if value else 'exactly 0|zero'}",
            page["live"],
        )
    for _ in range(200):  # on to the tables that the cell was made from
        if tab.script("return document.activeElement.matches('#reads td.lit')"):
            break
        tab.press("TAB")
    here = address(tab)
    expected = tab.script(
        "const { dataset, offsetParent } = document.activeElement; return [Number(document.activeElement.closest('table').dataset.array), Number(dataset.i)]"
    )
    tab.press("ENTER")
    _, stop, flat = run.place(address(tab))
    assert [stop.array, flat] == expected
    go_back(tab, here)


@pytest.mark.long
def test_keys_do_nothing_with_a_modifier_or_in_the_help(tab, file):
    tab.open(file, DSCORES)
    for modifier in ("CONTROL", "ALT", "META"):
        tab.press("x", "k", holding=modifier)
    assert address(tab) == DSCORES
    tab.press("?")
    assert tab.script("return document.getElementById('help').open")
    tab.press("j", "x")
    assert address(tab) == DSCORES
    tab.press("ESCAPE")
    assert not tab.script("return document.getElementById('help').open")
    tab.press("x")
    assert address(tab) == DSCORES.replace("backward/d", "forward/")


# ---- one cell ----


def test_a_cell_shows_its_value_difference_formula_and_numbers(tab, file, html, run):
    tab.open(file, DSCORES)
    page = shown(tab)
    assert page["address"] == DSCORES
    assert not unlike_run(run, page)
    step, stop, flat = run.place(DSCORES)
    value = run.value(step, stop, flat)
    assert text_of(tab, "formula", "math => math.querySelector('math').getAttribute('alttext')") == (
        "dscores[h,t,s] = probs[h,t,s] * (dprobs[h,t,s] - Sum(j, dprobs[h,t,j] * probs[h,t,j]))"
    )
    assert "each row sums to 0" in text_of(tab, "means")
    backward, difference, *_ = (float(x) for x in re.findall(r"-?\d+\.\d+", text_of(tab, "difference").replace("−", "-")))
    assert math.isclose(backward, value, rel_tol=1e-6)
    assert math.isclose(difference, value + error_of(unpack(html), stop.array, flat), rel_tol=1e-6)
    assert math.isclose(difference, value, abs_tol=1e-7)

    names = run.environment(step, stop)
    probs, dprobs = (np.squeeze(names[name], axis=0)[1, 3] for name in ("probs", "dprobs"))
    pairs = [x for pair in zip(dprobs, probs, strict=True) for x in pair]
    numbers = tab.script("return [...document.querySelectorAll('#cell [data-role=substituted] mn')].map((one) => one.textContent)")
    expected = [abs(x) for x in (probs[3], dprobs[3], *pairs, value)]
    assert len(numbers) == len(expected)
    assert all(is_shown(text, x) for text, x in zip(numbers, expected, strict=True))
    written = tab.script(
        "return [...document.querySelectorAll('#cell [data-role=substituted] :is(mn, mo)')].map((one) => one.textContent).join(' ')"
    )
    left, right = written.replace("×", "*").replace("·", "*").replace("−", "-").split("=")
    assert re.fullmatch(r"[-+*().\d\s]+", left)
    assert math.isclose(eval(left), float(right.replace(" ", "")), rel_tol=2e-3)


def text_of(tab, role, get="one => one.textContent"):
    return tab.script(f"return ({get})(document.querySelector('#cell [data-role={role}]'))")


def error_of(data, array, flat):
    """How far the finite difference beside an element is from it, by the page's data."""
    at = sum(math.prod(data["arrays"][one]["shape"]) for one in data["differences"][: data["differences"].index(array)])
    return float(decode(data["states"][1]["errors"], "<f4")[at + flat])


@pytest.mark.long
def test_sources_and_uses_of_a_cell_can_be_followed_and_left_again(tab, file, run):
    tab.open(file, DSCORES)
    step, stop, flat = run.place(DSCORES)
    readers = [other for other in run.stops if stop.array in run.arrays_read(other).values()]
    uses = {
        (other.array, i) for other in readers for i in range(run.size(other)) if (stop.array, flat) in run.reads(step, other, i)
    }
    for role, expected in (("sources", run.reads(step, stop, flat)), ("uses", uses)):
        buttons = f"#cell [data-role={role}] button"
        found = set()
        for place in range(tab.script("return document.querySelectorAll(arguments[0]).length", buttons)):
            tab.driver.find_elements("css selector", buttons)[place].click()
            page = shown(tab)
            assert not unlike_run(run, page)
            _, other, i = run.place(page["address"])
            found.add((other.array, i))
            go_back(tab, DSCORES)
        assert found == expected, role


@pytest.mark.long
def test_a_number_is_hidden_until_its_sign_is_predicted(tab, file, run):
    tab.open(file, DSCORES)
    digits = shown(tab)["value"].lstrip("-−")
    anywhere = "return document.body.innerHTML.includes(arguments[0])"
    assert tab.script(anywhere, digits)
    tab.press("p")
    assert not tab.script(anywhere, digits)
    assert text_of(tab, "substituted", "one => one") is None
    for sign, right, count in (("negative", True, "1 of 1"), ("positive", False, "1 of 2")):
        tab.script(
            "[...document.querySelectorAll('#cell button')].find((one) => one.textContent.trim() === arguments[0]).click()", sign
        )
        page = shown(tab)
        assert not unlike_run(run, page)
        assert is_shown(page["value"], run.value(*run.place(page["address"])))
        words = tab.script("return document.getElementById('cell').textContent")
        assert ("Right" in words) == right
        assert count in words
        tab.press("j", "k")
        tab.press("[")
        assert shown(tab)["value"] is None, "another state's number is hidden too"
        tab.press("j")
        assert shown(tab)["value"] is None
        tab.script("trace.go(arguments[0])", "60/attention_forward/q/h1t3d0" if right else DSCORES)
    assert run.value(*run.place("60/attention_forward/q/h1t3d0")) < 0, "choose another cell: the wrong answer above is to be wrong"
    tab.press("p")
    assert not unlike_run(run, shown(tab))


@pytest.mark.long
def test_the_value_plane_shows_dscores_as_weights_times_places_along_dy(tab, file, run):
    tab.open(file, DSCORES)
    for stop in PLANES:
        for head, query in ((1, 3), (3, 5), (0, 0)):
            cell = f"t{query}e{head * 2}" if stop.endswith("/y") else f"h{head}t{query}s0"
            tab.script("trace.go(arguments[0])", f"60/{stop}/{cell}")
            assert not unlike_plane(run, tab, head, query)
    tab.script("trace.go(arguments[0])", DSCORES)
    tab.script("document.querySelector('#plane [data-handle=v1]').focus()")
    for leave in (lambda: tab.click("#plane button.reset"), lambda: tab.press("j", "k")):
        tab.press("ARROW_RIGHT", "ARROW_UP")
        assert unlike_plane(run, tab, 1, 3)
        assert float(plane_rows(tab)[-1][-1]) == 0, "the bars balance wherever the points are"
        leave()
        assert not unlike_plane(run, tab, 1, 3)
        tab.script("document.querySelector('#plane [data-handle=dy]').focus()")
    drag(tab, "#plane [data-handle=v0]", 30, 20)
    assert unlike_plane(run, tab, 1, 3)


def drag(tab, selector, right, down):
    from selenium.webdriver.common.action_chains import ActionChains

    element = tab.driver.find_element("css selector", selector)
    ActionChains(tab.driver, duration=10).drag_and_drop_by_offset(element, right, down).perform()


def plane_rows(tab):
    rows = "return [...document.querySelectorAll('#plane table :is(tbody, tfoot) tr')].map((row) => [...row.children].map((one) => one.textContent))"
    return [[cell.replace("−", "-") for cell in row if cell] for row in tab.script(rows)]


def unlike_plane(run, tab, head, query):
    """Where the table of the value plane differs from the recorded run."""
    names = run.environment(60, run.by_address["attention_backward/dscores"])
    v, dy, probs = (np.squeeze(names[name], axis=0)[head] for name in ("v", "dy", "probs"))
    p, dy = probs[query, : query + 1], dy[query]
    y = p @ v[: query + 1]
    along = (v[: query + 1] - y) @ dy
    dscores = run.values(60, run.by_address["attention_backward/dscores"].array).reshape(4, 6, 6)[head, query, : query + 1]
    np.testing.assert_allclose(p * along, dscores, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dscores.sum(), 0, atol=1e-12)
    *rows, total = plane_rows(tab)
    found = [] if len(rows) == query + 1 and float(total[-1]) == 0 else [f"{len(rows)} rows, sum {total}"]
    for s, (row, *numbers) in enumerate(zip(rows, p, along, dscores, strict=True)):
        found += [f"row {s}: {text} for {x}" for text, x in zip(row[1:4], numbers, strict=True) if not is_shown(text, x)]
    bars = tab.script(
        "return [...document.querySelectorAll('#plane .bar')].map((bar) => [bar.className, Number(bar.style.getPropertyValue('--much'))])"
    )
    most = max(abs(dscores).max(), 1e-30)
    for (kind, much), x in zip(bars, dscores, strict=True):
        if abs(much - abs(x) / most) > 1e-3 or ("minus" in kind) != (x < 0):
            found.append(f"bar {kind} {much} for {x}")
    return found


# ---- addresses ----


def test_a_newcomer_sees_questions_that_lead_to_cells(tab, file, run):
    tab.open(file)
    assert tab.script("return scrollY") == 0
    assert not unlike_run(run, shown(tab) | {"hash": address(tab)})
    links = tab.script(
        "return [...document.querySelectorAll('#about a[href^=\"#\"]')].map((one) => [one.textContent, one.hash.slice(1)])"
    )
    questions = [hash for text, hash in links if text.endswith("?")]
    assert len(questions) >= 5
    for _, hash in links:
        assert run.address(*run.place(hash)) == hash
        tab.script("location.hash = arguments[0]", hash)
        tab.wait("return trace.address() === arguments[0]", hash)
    calls = tab.script(
        "return [...document.querySelectorAll('#tape a[data-call]')].map((one) => [one.dataset.call, one.hash.slice(1)])"
    )
    assert {call for call, _ in calls} == {run.names[stop.call.number] for stop in run.stops}
    for call, hash in calls:
        step, of, name, *_ = hash.split("/")
        assert of == call
        assert f"{of}/{name}" in run.by_address


@pytest.mark.long
def test_the_address_of_a_cell_opens_it_again(tab, file, run):
    for stop in ("cross_entropy_forward/loss", "attention_backward/dqkv.1", "layernorm_forward.ln1/mean"):
        tab.open(file, DSCORES)
        place = run.by_address[stop]
        expected = run.address(0, place, run.size(place) - 1)
        tab.script("trace.go(arguments[0])", expected)
        hash = tab.script("return location.hash.slice(1)")
        tab.open(file, hash)
        page = shown(tab)
        assert page["address"] == expected
        assert not unlike_run(run, page)


@pytest.mark.long
def test_an_unknown_address_shows_the_nearest_place_and_says_so(tab, file, run):
    wanted = {
        "60/attention_backward/dscores_of_old/h1t3s3": "60/attention_backward/",
        "7/attention_backward/dscores/h1t3s3": "60/attention_backward/dscores/h1t3s3",
        "60/attention_backward/dscores/h1t99s3": "60/attention_backward/dscores/h1t5s3",
        "60/attention_backward": "60/attention_backward/",
        "60/nothing/at/all": "60/attention_backward/dscores/",
        "nothing": "60/attention_backward/dscores/",
        "60/attention_backward/dscores/%E0%A4%A": "60/attention_backward/dscores/",
        "%00/%00/%00": "60/attention_backward/dscores/",
        "////": "60/attention_backward/dscores/",
    }
    for at, near in wanted.items():
        if at in ("60/nothing/at/all", "60/attention_backward/dscores/%E0%A4%A"):
            tab.open(file, at)
        else:
            tab.script("location.hash = arguments[0]", at)
            tab.wait("return trace.address() === decodeURIComponent(location.hash.slice(1))")
        page = shown(tab)
        assert page["address"].startswith(near), at
        assert page["live"].strip(), at
        assert not unlike_run(run, page)


# ---- everybody ----


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_obstacle(tab, file, screen, dark):
    if not (axe := browser.axe()):
        pytest.skip("axe-core is not installed (pip install --no-deps axe-playwright-python)")
    tab.set_screen(*screen, dark=dark)
    tab.open(file)
    tab.script(axe)
    assert not obstacles(tab), "at the start"
    tab.script("trace.go('60/linear_backward.fc/dw/c3d3')")
    assert not obstacles(tab), "at a large table"
    tab.script("trace.go(arguments[0])", DSCORES)
    tab.press("p")
    assert not obstacles(tab), "where a number is to be predicted"
    tab.press("?")
    assert not obstacles(tab), "in the help"


@pytest.mark.long
def test_no_stop_is_too_wide_for_a_phone_and_a_finger_is_enough(tab, file, run):
    places = [f"60/{stop.address}" for stop in run.stops]
    tab.set_screen(*NARROW)
    tab.open(file)
    assert not too_wide(tab, places)
    tab.set_screen(*PHONE)
    assert not too_wide(tab, places)
    tab.open(file, DSCORES)
    tab.tap("#line td[data-i='61']")
    tab.wait("return trace.address() === '60/attention_backward/dscores/h1t4s1'")
    for key, stop in (("next", "dq"), ("previous", "dscores"), ("pair", "scores"), ("back", "dscores")):
        tab.script("scrollTo(0, document.body.scrollHeight)")
        box = tab.script(
            "const { top, bottom } = document.querySelector(arguments[0]).getBoundingClientRect(); return [top, innerHeight - bottom]",
            f"[data-key={key}]",
        )
        assert min(box) >= 0, f"{key} is out of reach"
        tab.tap(f"[data-key={key}]")
        tab.wait("return trace.address().split('/')[2] === arguments[0]", stop)
        assert not unlike_run(run, shown(tab))


@pytest.mark.long
def test_nothing_moves_where_motion_is_to_be_reduced(tab, file):
    tab.set_screen(*WIDE, still=True)
    tab.open(file, DSCORES)
    assert not moving(tab)


@pytest.mark.long
def test_tables_have_captions_and_headers_with_the_characters(tab, file, run):
    tab.open(file, DSCORES)
    tables = tab.script("""return [...document.querySelectorAll("table[data-array]")].map((table) => [table.caption?.textContent ?? "",
      [...table.querySelectorAll("th")].every((one) => one.scope), [...table.querySelectorAll("tbody th")].map((one) => one.textContent)])""")
    assert all(caption and scoped for caption, scoped, _ in tables)
    labels = tables[0][2]
    assert [label[-1] for label in labels] == list("012345")
    assert [label[:-1] for label in labels if label[:-1].isalpha()] == [letter for letter in "or not" if letter != " "]
    assert labels[2][:-1].strip(), "a space has a mark that can be seen"


@pytest.mark.long
def test_without_scripts_the_derivations_are_there(tab, file, html):
    with tab.without_scripts():
        tab.open(file, ready="return document.readyState === 'complete'")
        text = tab.driver.find_element("tag name", "noscript").text
    for function in unpack(html)["functions"].values():
        for formula in function["formulas"]:
            assert re.sub(r"\s+", " ", formula["text"]) in re.sub(r"\s+", " ", text)


# ---- pages of other models ----


def long_vocabulary():
    """One block with 65 characters, a context of 8, and heads of 4 channels."""
    vocabulary = "\n " + string.ascii_letters + string.digits + "."
    config = config_of("gpt", vocab_size=len(vocabulary), block_size=8, n_layer=1, n_head=2, n_embd=8)
    text = "a b\nA9 b."
    return config, vocabulary, text, record(config, start(config, std=0.5).params, vocabulary, text, 0, with_differences=False)


def variant(name):
    config = config_of(**VARIANTS[name])
    return config, string.ascii_lowercase[: config.vocab_size], TEXT, recorded(name)


OTHERS = ("bigram", "head", "gpt-2-blocks-relu", "gpt-tied-without-biases", "65 characters")


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_the_page_of_another_model(tab, tmp_path, name):
    config, vocabulary, text, state = long_vocabulary() if name == "65 characters" else variant(name)
    run, file = Run([state]), tmp_path / "other.html"
    file.write_text(page_of(config, vocabulary, text, [state]), encoding="utf-8")
    tab.open(file)
    assert tab.script("return trace.stops") == [stop.address for stop in run.stops]
    assert not unlike_formulas(run, tab, 0, every_read=11)
    assert not jump(run, tab, [run.address(0, stop, run.size(stop) // 2) for stop in run.stops])
    planes = [stop for stop in PLANES if stop in run.by_address]
    for stop in planes:
        tab.script("trace.go(arguments[0])", f"0/{stop}")
        assert tab.script("return document.querySelector('#plane') !== null") == (config.n_embd // config.n_head == 2)


# ---- mistakes in a page are found ----


def test_mistakes_in_the_data_are_found(chromium, tmp_path, html, run):
    data = unpack(html)
    changed_number(data, run)
    dk, dx = (data["functions"][name]["formulas"] for name in ("attention_backward", "softmax_backward"))
    next(formula for formula in dk if formula["name"] == "dk")["tree"][1][2][2][2][1] = ["name", "s"]  # q[h,s,d] for q[h,t,d]
    dx[0]["tree"][2][0] = "+"  # dy plus the row's average
    file = tmp_path / "wrong.html"
    file.write_text(page(data), encoding="utf-8")
    chromium.open(file)
    for stop, what in {
        "layernorm_forward.ln2/y": "value",
        "attention_backward/dk": "reads differ",
        "softmax_backward/dx": "formula",
    }.items():
        assert any(what in difference for difference in unlike_formulas(run, chromium, 60, [run.by_address[stop]])), stop
    assert not unlike_formulas(run, chromium, 60, [run.by_address["linear_forward.head/y"]])
    wrong = jump(run, chromium, ["60/layernorm_forward.ln2/y/t0c1", "60/attention_backward/dk/h1s3d1"])
    assert any(re.search(r"array \d+\[0\] is \S+, recorded", difference) for difference in wrong)
    assert any("lit are" in difference for difference in wrong)


def changed_number(data, run):
    """The first number of an array, 1% larger: less than a shade of its colour."""
    numbers = decode(data["states"][1]["numbers"], "<f8")
    numbers[data["arrays"][run.by_address["layernorm_forward.ln2/y"].array]["at"]] *= 1.01
    data["states"][1]["numbers"] = encode(numbers)


def test_a_mistake_in_the_script_is_found(chromium, tmp_path, html, run):
    """A negative number with the colour of a positive one; and after it, rows for columns."""
    for right, wrong in (
        ('"plus" : x < 0 ? "minus"', '"minus" : x < 0 ? "plus"'),
        ("start + r * columns + c", "start + c * columns + r"),
    ):
        assert html.count(right) == 1
        file = tmp_path / "wrong.html"
        file.write_text(html.replace(right, wrong), encoding="utf-8")
        chromium.open(file)
        assert jump(run, chromium, [DSCORES])


def test_an_unkind_page_is_found(chromium, tmp_path, html):
    policy = re.search("<meta http-equiv[^>]*>", html)[0]
    changes = {
        'lang="en"': "",
        policy: '<img src="https://example.org/a.png">',
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
    assert too_wide(chromium, [DSCORES])
    assert moving(chromium)
    assert any("oh" in message for message in chromium.messages())
    assert "https://example.org/a.png" in chromium.requests()
    if axe := browser.axe():
        chromium.script(axe)
        assert any("html-has-lang" in obstacle for obstacle in obstacles(chromium))
