"""docs/trace.html is the page that the code makes: the same text, the same numbers under every BLAS kernel, and nothing loaded."""

import copy
import html
import json
import re

import numpy as np
import pytest

from gpt.trace import example
from gpt.trace.data import decode, encode
from gpt.trace.page import page, unpack
from gpt.trace.program import page_of
from paths import ROOT

COMMITTED = ROOT / "docs" / "trace.html"
LIMIT = 250 * 1024  # bytes
NUMBERS = {"numbers": ("<f8", 1e-12), "errors": ("<f4", 1e-9)}  # how each is stored, and how near two runs are


@pytest.fixture(scope="module")
def committed():
    return COMMITTED.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made():
    """The page without finite differences, which take most of the time to make it."""
    return page_of(example.MODEL, example.VOCABULARY, example.WINDOW, example.example(with_differences=False))


def frame(page_html):
    """The page without its data: style, script and the static list."""
    return re.sub(r'(<script type="text/plain" id="data">)[^<]*', r"\1", page_html)


def without_differences(data):
    return {**data, "differences": [], "states": [{**state, "errors": ""} for state in data["states"]]}


def unlike(first, second):
    """The places where the data of two pages differ by more than rounding."""
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    found = []
    for a, b in zip(first["states"], second["states"], strict=True):
        for name, (dtype, near) in NUMBERS.items():
            x, y = (decode(state.pop(name), dtype) for state in (a, b))
            if x.shape != y.shape or not np.allclose(x, y, rtol=0, atol=near):
                found.append(f"{name} of step {a['step']}")
        if abs(a.pop("loss") - b.pop("loss")) > 1e-12:
            found.append("loss")
    found += [name for name in first if first[name] != second.get(name)]
    return found


def test_the_committed_page_is_what_the_code_makes(committed, made):
    assert frame(committed) == frame(made), "run python -m gpt.trace --out docs/trace.html"
    assert not unlike(without_differences(unpack(committed)), unpack(made)), "run python -m gpt.trace --out docs/trace.html"


@pytest.mark.long
def test_the_differences_of_the_committed_page_are_what_the_code_makes(committed):
    made = page_of(example.MODEL, example.VOCABULARY, example.WINDOW, example.example())
    assert not unlike(unpack(committed), unpack(made)), "run python -m gpt.trace --out docs/trace.html"


def test_every_gradient_of_the_committed_page_agrees_with_its_difference(committed):
    data = unpack(committed)
    shown = sum(np.prod(data["arrays"][array]["shape"], dtype=int) for array in data["differences"])
    for state in data["states"]:
        errors = decode(state["errors"], "<f4")
        assert len(errors) == shown > 2000
        assert np.abs(errors).max() < 1e-10


def test_the_page_holds_what_was_put_in(made):
    data = unpack(made)
    assert unpack(page(data)) == data
    assert page(data) == made


def flip_a_number(data):
    numbers = decode(data["states"][1]["numbers"], "<f8")
    numbers[2000] += 1e-9
    data["states"][1]["numbers"] = encode(numbers)


def change_an_index(data):
    formula = data["functions"]["linear_backward"]["formulas"][2]
    formula["tree"] = json.loads(json.dumps(formula["tree"]).replace('"t"', '"c"'))


def change_a_sign(data):
    tree = data["functions"]["softmax_backward"]["formulas"][0]["tree"]
    tree[2][0] = "+"


@pytest.mark.parametrize("change", [flip_a_number, change_an_index, change_a_sign])
def test_a_changed_page_is_not_what_the_code_makes(made, change):
    data = unpack(made)
    change(data)
    assert unlike(data, unpack(made))


def test_the_page_is_small_and_loads_nothing(committed):
    assert len(committed.encode()) <= LIMIT
    assert "default-src 'none'" in committed
    text = frame(committed)
    addresses = set(re.findall(r"\w+://[\w./-]+", text))
    assert all(address.startswith("http://www.w3.org/") for address in addresses), addresses  # names of MathML and SVG
    assert not re.findall(r"<(?:link|img|iframe|object)\b|@import|url\((?!data:)|\bfetch\(|XMLHttpRequest|\bimport\(", text)


def test_without_script_the_derivations_and_formulas_are_there(committed):
    static = html.unescape(committed.split("<noscript>")[1].split("</noscript>")[0])
    for function in unpack(committed)["functions"].values():
        assert function["says"] in static
        assert all(text in static for _, text in function["derivation"])
        assert all(formula["text"] in static for formula in function["formulas"])


def test_a_text_that_looks_like_a_place_of_the_template_is_only_text(made):
    data = unpack(made)
    text = "/*script*/<!--static--></script>"
    changed = page({**data, "text": text})
    assert html.unescape(changed.split("<title>")[1].split("</title>")[0]).count(text) == 1
    assert unpack(changed) == {**data, "text": text}
    assert changed.count('"use strict"') == made.count('"use strict"')
