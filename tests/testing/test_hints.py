"""Tests of the hints: the kind of each known-wrong layer's mistake is named, and nothing is said of a true gradient."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from tensorlite import ReferenceOps, gradcheck
from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import BUGS, example
from tensorlite.testing.hints.explain import explain, hint_from_entries
from tensorlite.testing.hints.factors import name_factor
from tensorlite.testing.report import Entry

KINDS = tomllib.loads((Path(__file__).parent / "mistake_kinds.toml").read_text())
UNLISTED = ("other", "none")
SIDES = {True: "square", False: "unequal"}
FOUND_AS = {"mean": ("mean", "factor")}  # over a fixed number of rows a mean is a factor
ERROR = 1e-10  # of a numerical derivative
OPS = ReferenceOps()

# What a hint must say of a factor, with n for the length: in the square example all are 3, in the other they are B, T, C, V, H.
FACTORS = {
    ("linear", "db averaged over rows"): (
        "divided by 9; 9 is the number of rows of x",
        "divided by 6; 6 is the number of rows of x",
    ),
    ("linear", "dw divided by the number of rows"): ("divided by 9; 9 is the number of rows of x", "divided by 6;"),
    ("position_embedding", "averaged over the batch"): ("divided by 3;", "divided by 2; 2 is the length of axis 0 of x"),
    ("layernorm", "rstd squared"): (None, "a factor that is constant along axis 2"),
    ("layernorm", "db after the gain"): ("times w", "times w"),
    ("relu", "multiplied by the output"): ("times x or y", "times x or y"),
    ("attention", "the scale missing from dk"): ("[:, :, 9:18] is sqrt(3) times", "[:, :, 24:48] is 2 times"),
    ("attention", "the scale applied twice"): ("each is the truth divided by sqrt(3)", "or the truth divided by sqrt(4)"),
    ("dropout", "the inv_keep forgotten"): ("(1 - p) times the truth; p is 0.25", "(1 - p) times the truth; p is 0.25"),
    ("dropout", "divided by p"): ("or (1 - p)/p times the truth", "or (1 - p)/p times the truth"),
    ("residual", "the gradient shared out"): ("divided by 2;", "divided by 2;"),
    ("cross_entropy", "1/N missing"): ("9 times the truth; 9 is the number of rows", "6 times the truth; 6 is the number of rows"),
    ("cross_entropy", "divided by N V"): ("divided by 3;", "divided by 5; 5 is the length of axis 2 of logits"),
    ("cross_entropy", "divided by B only"): ("3 times the truth;", "3 times the truth; 3 is the length of axis 1 of logits"),
    ("cross_entropy", "dloss ignored"): ("divided by dy", "divided by dy"),
}
# A mistake inside one term shows as that term, whose factor is wrong.
TERMS_INSIDE = {("layernorm", "n - 1 for n"), ("softmax", "a plain sum of dy")}
# A mistake of two kinds: each gradient is described by its own.
TWO_KINDS = {("layernorm", "rows counted by the first axis"): {"mask", "one of several"}}


def hint_for(*args, **options):
    """Return the text of a hint, empty where there is none."""
    hint = explain(*args, **options)
    return hint.text if hint else ""


def kind(bug):
    return KINDS[bug.op][bug.name]


def is_listed(bug):
    """Whether the gradient as a whole is wrong in a way that has a name."""
    return kind(bug)["kind"] not in UNLISTED and "inside" not in kind(bug)


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def hints(bug, square):
    """Return the hints for each wrong gradient of the bug; None where NumPy refuses a shape."""
    inputs = example(bug.op, square)
    names = OP_INFO[bug.op].inputs
    y, cache = bug.forward(**inputs)
    dy = np.random.default_rng(0).standard_normal(np.shape(y))
    true = dict(zip(names, as_tuple(getattr(OPS, f"{bug.op}_backward")(dy, cache)), strict=True))
    noise = np.random.default_rng(1)
    try:
        wrong = dict(zip(names, as_tuple(bug.backward(dy, cache)), strict=True))
    except ValueError:
        return None
    found = []
    for name in names:
        same = wrong[name].shape == true[name].shape and np.allclose(wrong[name], true[name], 1e-7, 1e-9)
        estimates = {other: g + ERROR * noise.uniform(-1, 1, g.shape) for other, g in true.items()}
        errors = dict.fromkeys(names, ERROR)
        hint = explain(name, wrong, estimates, errors, inputs=inputs, y=(np.asarray(y),), dy=(np.asarray(dy),))
        if same:
            assert hint is None, (bug.name, name, hint)
        else:
            found.append(hint)
    return found


def verdict(bug, square):
    """Return right, wrong or silent."""
    found = hints(bug, square)
    if not found or None in found:
        return "silent"
    right = all(hint.kind in FOUND_AS.get(kind(bug)["kind"], (kind(bug)["kind"],)) for hint in found)
    words = FACTORS.get((bug.op, bug.name), ("", ""))[0 if square else 1]
    return "right" if right and words is not None and all(words in hint.text for hint in found) else "wrong"


# ---- the known-wrong layers ----


def test_the_table_has_every_known_wrong_layer():
    assert {(op, name) for op, names in KINDS.items() for name in names} == {(bug.op, bug.name) for bug in BUGS}
    assert all((kind(bug)["kind"] == "none") == (bug.wrong == ("y",)) for bug in BUGS)
    assert sum(map(is_listed, BUGS)) >= 36
    assert {title for title in FACTORS if kind_at(title) not in ("factor", "mean")} == set()


def kind_at(title):
    op, name = title
    return KINDS[op][name]["kind"]


def test_nine_in_ten_listed_mistakes_are_named():
    """A mistake is named if one of the two examples gets the right hint. A wrong hint is never given."""
    listed = [bug for bug in BUGS if is_listed(bug)]
    verdicts = {f"{bug.op}: {bug.name}": {SIDES[square]: verdict(bug, square) for square in SIDES} for bug in listed}
    for title, sides in verdicts.items():
        print(f"{title:55s} {sides}")
    misled = [title for title, sides in verdicts.items() if "wrong" in sides.values()]
    missed = [title for title, sides in verdicts.items() if "right" not in sides.values()]
    assert not misled
    assert len(missed) <= 0.1 * len(listed), missed
    assert missed == ["softmax: the diagonal only", "gelu: half of the product rule"]


@pytest.mark.parametrize("square", SIDES, ids=SIDES.values())
def test_other_mistakes_get_no_wrong_hint(square):
    for bug in BUGS:
        if is_listed(bug) or kind(bug)["kind"] == "none":
            continue
        kinds = {hint.kind for hint in hints(bug, square) or () if hint}
        title = (bug.op, bug.name)
        if title in TWO_KINDS:
            assert "mask" in kinds <= TWO_KINDS[title]
        else:
            assert kinds == ({"term"} if title in TERMS_INSIDE else set()), bug.name


@pytest.mark.long
@pytest.mark.parametrize("square", SIDES, ids=SIDES.values())
def test_the_report_of_gradcheck_gives_the_same_hints(square):
    """gradcheck has the truth from differences; attention, which takes longest, is left to its own test."""
    for bug in BUGS:
        expected = [] if bug.op == "attention" or bug.wrong == ("y",) else hints(bug, square)
        if not expected:
            continue
        report = gradcheck(bug.forward, bug.backward, example(bug.op, square), raise_on_fail=False, max_report=1)
        given = [argument.hint for argument in report.arguments if argument.status == "fail"]
        complaints = [v.partition(". ")[2] for v in report.contract_violations if "float64" in v]
        expected_texts = [without_numbers(hint.text) if hint else "" for hint in expected]
        assert [without_numbers(text) for text in complaints + given] == expected_texts, bug.name


def without_numbers(text):
    """The entries that a mask concerns depend on dy, which is not the same in both."""
    return " ".join(word for word in text.split() if not word.isdecimal())


def test_the_gradient_of_packed_attention():
    bug = next(bug for bug in BUGS if bug.name == "dk transposed by a reshape")
    report = gradcheck(bug.forward, bug.backward, example("attention"), raise_on_fail=False)
    assert "hint: dqkv[:, :, 9:18] equals the truth with axes 1 and 3 swapped" in str(report)


# ---- true gradients ----


@pytest.mark.parametrize("square", SIDES, ids=SIDES.values())
@pytest.mark.parametrize("op", OP_INFO)
def test_a_true_gradient_has_no_hint(op, square):
    inputs = example(op, square)
    report = gradcheck(getattr(OPS, f"{op}_forward"), getattr(OPS, f"{op}_backward"), inputs)
    assert not any(argument.hint for argument in report.arguments)
    y, cache = getattr(OPS, f"{op}_forward")(**inputs)
    gradients = as_tuple(getattr(OPS, f"{op}_backward")(np.ones_like(y), cache))
    true = dict(zip(OP_INFO[op].inputs, gradients, strict=True))
    rough = {name: g * (1 + 1e-9) for name, g in true.items()}
    for name in true:
        assert (
            hint_for(name, true, rough, dict.fromkeys(true, 1e-9), inputs=inputs, y=(np.asarray(y),), dy=(np.ones_like(y),)) == ""
        )


def plain(x):
    return x


def rows_that_sum_to_zero(x):
    return x - x.mean(axis=-1, keepdims=True)


def constant_along_an_axis(x):
    return np.broadcast_to(x.mean(axis=0, keepdims=True), x.shape).copy()


def sparse(x):
    return np.where(np.random.default_rng(0).standard_normal(x.shape) > 0, x, 0.0)


@pytest.mark.parametrize("structure", [plain, rows_that_sum_to_zero, constant_along_an_axis, sparse])
@pytest.mark.parametrize("seed", range(24))
def test_a_mistake_without_a_pattern_has_no_hint(seed, structure):
    """Noise in all entries or in one, a factor for each entry, a small disturbance: the structure of the truth is no hint."""
    random = np.random.default_rng(seed)
    shape = [(3, 3), (3, 4), (2, 3, 4), (4, 4, 4), (6,), (3,), (2, 2), (4, 1)][seed % 8]
    n = shape[-1]
    x, w, square = (random.standard_normal(s) for s in (shape, n, (n, n)))
    inputs = {"x": x, "w": w, "square": square, "ids": random.integers(0, n, shape[:-1]), "n_head": 2, "p": 0.25}
    true = {name: structure(random.standard_normal(inputs[name].shape)) for name in ("x", "w", "square")}
    y, dy = (random.standard_normal(shape),), (random.standard_normal(shape),)
    one_entry = true["x"].copy()
    one_entry.flat[seed % one_entry.size] += random.standard_normal()
    for wrong in (
        structure(random.standard_normal(shape)),
        one_entry,
        true["x"] * random.standard_normal(shape),
        true["x"] + 1e-4 * structure(random.standard_normal(shape)),
    ):
        assert hint_for("x", true | {"x": wrong}, true, {"x": ERROR}, inputs=inputs, y=y, dy=dy) == ""


def test_a_truth_that_hardly_exceeds_its_error_has_no_hint():
    x = np.random.default_rng(0).standard_normal((3, 3))
    assert hint_for("x", {"x": x.T}, {"x": x}, {"x": 1e-10}) == "dx equals the transpose of the truth"
    assert hint_for("x", {"x": x.T}, {"x": x}, {"x": 1e-2}) == ""
    assert hint_for("x", {"x": 1e-9 * x.T}, {"x": 1e-9 * x}, {"x": 1e-13}) == ""
    assert hint_for("x", {"x": 0 * x}, {"x": 1e-7 * x}, {"x": 1e-10}) == ""
    assert hint_for("x", {"x": x.T}, {"x": np.full((3, 3), np.nan)}, {"x": 1e-10}) == ""


def test_an_argument_that_passed_has_no_hint():
    """Under a loose tolerance its gradient may be half a percent too large."""
    report = gradcheck(
        lambda a, b: (a + b, None),
        lambda dy, _: (1.005 * dy, -dy),
        {"a": normal(3, 4), "b": normal(3, 4)},
        rtol=1e-2,
        raise_on_fail=False,
    )
    assert [argument.hint for argument in report.arguments] == ["", "db equals minus the truth"]


def test_values_where_the_truth_is_zero_have_no_factor():
    true, wrong = np.zeros(6), np.array([1.0, 2.0, 3.0, 4.0, 0.0, 0.0])
    true[0] = 1.0
    assert hint_for("x", {"x": wrong}, {"x": true}, {"x": ERROR}) == ""


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4,), (4, 4), (2, 3, 4, 2)])
def test_inputs_of_every_sort_do_no_harm(shape):
    """An additive mask with -inf, ids of an unsigned type, floats, strings and empty arrays are looked at, too."""
    mask = np.where(np.tri(4, dtype=bool), 0.0, -np.inf)
    inputs = {"x": normal(*shape), "mask": mask, "ids": np.arange(4, dtype=np.uint64), "mode": "fast", "none": None, "eps": 1e-5}
    inputs |= {"huge": 10**30, "flag": True, "scale": 0.0, "empty": np.zeros((0, 4)), "names": np.array(["a"])}
    true, wrong = normal(*shape), normal(*shape)
    y, dy = (mask, normal(4) * 1j), (np.array(0.0),)
    assert hint_for("x", {"x": wrong}, {"x": true}, {"x": ERROR}, inputs=inputs, y=y, dy=dy) == ""
    assert hint_for("x", {"x": wrong[None]}, {"x": true}, {"x": ERROR}, inputs=inputs) == ""
    expected = "dx equals minus the truth" if true.size else ""
    assert hint_for("x", {"x": -true}, {"x": true}, {"x": ERROR}, inputs=inputs, dy=(np.array(0.0),)) == expected


def test_a_symmetric_truth_is_no_hint():
    x = np.random.default_rng(0).standard_normal((3, 3))
    symmetric = x + x.T
    assert hint_for("x", {"x": 2 * x}, {"x": symmetric}) == ""
    nearly = symmetric + 1e-6 * x
    assert hint_for("x", {"x": nearly.T}, {"x": nearly}) == ""


# ---- layers that are not among the known ones ----


RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape)


def said(forward, backward, **inputs):
    """Return what the report says about the wrong gradients."""
    report = gradcheck(forward, backward, inputs, raise_on_fail=False)
    assert report.status == "fail"
    assert all(argument.hint == "" for argument in report.arguments if argument.status == "pass")
    return "\n".join([*report.contract_violations, *(argument.hint for argument in report.arguments if argument.hint)])


def matmul(x, w):
    return x @ w.T, (x, w)


def products(dy, x, w):
    """Return the gradients of both halves of x w, whose product is y."""
    halves = x @ w
    return dy * halves[:, 2:], dy * halves[:, :2]


def rows(table, ids, gain):
    return table[ids] * gain, (table, ids, gain)


FRESH = {
    "the sign of a difference": (
        lambda a, b: (a - b, None),
        lambda dy, _: (dy, dy),
        {"a": normal(3, 4), "b": normal(3, 4)},
        "db equals minus the truth",
    ),
    "the transpose of a square weight": (
        matmul,
        lambda dy, c: (dy @ c[1], c[0].T @ dy),
        {"x": normal(5, 4), "w": normal(4, 4)},
        "dw equals the transpose of the truth",
    ),
    "a transpose by a reshape": (
        matmul,
        lambda dy, c: (dy @ c[1], (c[0].T @ dy).reshape(c[1].shape)),
        {"x": normal(5, 4), "w": normal(3, 4)},
        "dw equals the truth with axes 0 and 1 swapped, and then reshaped",
    ),
    "the transpose of each expert": (
        lambda x, w: (np.einsum("nc,ecd->end", x, w), (x, w)),
        lambda dy, c: (np.einsum("end,ecd->nc", dy, c[1]), np.einsum("nc,end->edc", c[0], dy)),
        {"x": normal(5, 3), "w": normal(2, 3, 3)},
        "dw equals the truth with axes 1 and 2 swapped",
    ),
    "a weight not transposed": (
        lambda x, w: (w @ x, (x, w)),
        lambda dy, c: (c[1] @ dy, dy @ c[0].T),
        {"x": normal(4, 5), "w": normal(4, 4)},
        "dx is what it should be if w were transposed",
    ),
    "a shape transposed": (
        matmul,
        lambda dy, c: (dy @ c[1], c[0].T @ dy),
        {"x": normal(5, 4), "w": normal(3, 4)},
        "dw equals the transpose of the truth",
    ),
    "a mean over the rows": (
        lambda x, s: (x * s, (x, s)),
        lambda dy, c: (dy * c[1], (dy * c[0]).mean(0)),
        {"x": normal(7, 4), "s": normal(4)},
        "ds is the truth divided by 7; 7 is the length of axis 0 of x (a mean where a sum belongs?)",
    ),
    "the sum over another axis": (
        lambda x, b: (x + b, None),
        lambda dy, _: (dy, dy.sum(1)),
        {"x": normal(4, 4), "b": normal(4)},
        "db is dy summed over axis 1, not summed over axis 0",
    ),
    "the 2 of a square": (
        lambda x: (x * x, x),
        lambda dy, x: x * dy,
        {"x": normal(3, 5)},
        "dx is the truth divided by 2; no axis has the length 2",
    ),
    "sqrt(D) for D": (
        lambda q, k: (q @ k.T / np.sqrt(q.shape[1]), (q, k)),
        lambda dy, c: (dy @ c[1] / np.sqrt(5), dy.T @ c[0] / 5),
        {"q": normal(3, 5), "k": normal(4, 5)},
        "dk is the truth divided by sqrt(5); 5 is the length of axis 1 of q",
    ),
    "n for n - 1": (
        lambda x: (x.var(ddof=1), x),
        lambda dy, x: dy * 2 / x.size * (x - x.mean()),
        {"x": normal(8)},
        "dx is 7/8 times the truth; 8 is the length of axis 0 of x (n for n - 1?)",
    ),
    "the square of a slope": (
        lambda x, slope: (np.where(x > 0, x, slope * x), (x, slope)),
        lambda dy, c: np.where(c[0] > 0, dy, c[1] ** 2 * dy),
        {"x": normal(4, 5) + 3 * np.sign(normal(4, 5)), "slope": 0.3},
        "it is slope times the truth; slope is 0.3",
    ),
    "an array as factor": (
        lambda x, gate: (x * gate, (x, gate)),
        lambda dy, c: (dy, dy * c[0]),
        {"x": normal(3, 4), "gate": normal(3, 4)},
        "dx lacks a factor: times gate it is the truth",
    ),
    "a factor for each row": (
        lambda x, w: (x / np.sqrt((w * w).sum(-1, keepdims=True)), (x, w)),
        lambda dy, c: (dy / (c[1] ** 2).sum(-1, keepdims=True), -(dy * c[0]).sum(-1, keepdims=True) * c[1]),
        {"x": normal(3, 5), "w": normal(3, 5)},
        "dx is the truth times a factor that is constant along axis 1",
    ),
    "two gradients swapped": (
        lambda a, b: (a * b, (a, b)),
        lambda dy, c: (dy * c[0], dy * c[1]),
        {"a": normal(3, 4), "b": normal(3, 4)},
        "da and db are swapped: each equals the true value of the other",
    ),
    "two gradients of other shapes swapped": (
        lambda x, w: (x @ w, (x, w)),
        lambda dy, c: {"x": c[0].T @ dy, "w": dy @ c[1].T},
        {"x": normal(5, 4), "w": normal(4, 3)},
        "dx equals the true value of dw: are the two swapped?",
    ),
    "packed halves in another order": (
        lambda x, w: ((x @ w)[:, :2] * (x @ w)[:, 2:], (x, w)),
        lambda dy, c: {"x": np.hstack(products(dy, *c)) @ c[1].T, "w": c[0].T @ np.hstack(products(dy, *c)[::-1])},
        {"x": normal(5, 3), "w": normal(3, 4)},
        "dw has parts of axis 1 in each other's place: [:, 0:2], [:, 2:4]",
    ),
    "one gradient for two inputs": (
        lambda a, b: (a * b, (a, b)),
        lambda dy, c: (dy * c[1], dy * c[1]),
        {"a": normal(3, 4), "b": normal(3, 4)},
        "db equals the true value of da",
    ),
    "another factor in each half": (
        lambda x, w: (x * w, (x, w)),
        lambda dy, c: (dy * c[1], (dy * c[0]).sum(0) * np.repeat([2.0, 5.0], 3)),
        {"x": normal(5, 6), "w": normal(6)},
        "dw[0:3] is 2 times the truth; no axis has the length 2; dw[3:6] is 5 times the truth; 5 is the length of axis 0 of x",
    ),
    "a factor without a name behind a branch": (
        lambda x: (np.where(x > 0, x, 0.3 * x), x),
        lambda dy, x: np.where(x > 0, dy, 0.5 * dy),
        {"x": normal(4, 8) + 3 * np.sign(normal(4, 8))},
        "entries, it is 1.666667 times the truth",
    ),
    "the right values in another shape": (
        lambda x, b: (x + b, None),
        lambda dy, _: (dy, dy.sum(0).reshape(2, 3)),
        {"x": normal(5, 6), "b": normal(6)},
        "db has the values of the truth in the shape (2, 3) instead of (6,)",
    ),
    "summed too far": (
        lambda x, w: (x * w, (x, w)),
        lambda dy, c: (dy * c[1], (dy * c[0]).sum()),
        {"x": normal(5, 3), "w": normal(3)},
        "dw is the truth summed over axis 0, which belongs to it",
    ),
    "a bias of one row, not summed": (
        lambda x, b: (x + b, None),
        lambda dy, _: (dy, dy),
        {"x": normal(4, 3), "b": normal(1, 3)},
        "Summed over axis 0, db equals the truth",
    ),
    "a bias, not summed": (
        lambda x, b: (x + b, None),
        lambda dy, _: (dy, dy),
        {"x": normal(2, 4, 3), "b": normal(3)},
        "Summed over axes 0 and 1, db equals the truth",
    ),
    "repeated rows of a scaled table": (
        rows,
        lambda dy, c: {"table": last_rows(dy * c[2], c), "gain": (dy * c[0][c[1]]).sum(0)},
        {"table": normal(5, 3), "ids": np.array([0, 2, 2, 4, 0, 2, 1]), "gain": normal(3)},
        "dtable is right for values that occur once in ids and wrong for those that it repeats",
    ),
    "never filled": (
        lambda x, w: (x @ w, (x, w)),
        lambda dy, c: (dy @ c[1].T, np.zeros_like(c[1])),
        {"x": normal(5, 4), "w": normal(4, 3)},
        "dw is zero everywhere, the truth is not",
    ),
    "a mask left out": (
        lambda x: (np.clip(x, -1, 1), x),
        lambda dy, _: dy,
        {"x": normal(5, 4) * 2},
        "as if a mask were left out; elsewhere it is the truth",
    ),
    "a mask too many": (
        lambda x: (x * np.tri(4), None),
        lambda dy, _: dy * np.tri(4, k=-1),
        {"x": normal(4, 4)},
        "dx is zero in 4 entries where the truth is not, as if by a mask too many",
    ),
    "a shift forgotten": (
        lambda x: (np.concatenate([0 * x[:1], x[:-1]]), None),
        lambda dy, _: dy,
        {"x": normal(5, 3)},
        "dx equals the truth shifted by 1 along axis 0",
    ),
    "a roll the wrong way": (
        lambda x: (np.roll(x, 1, axis=0), None),
        lambda dy, _: np.roll(dy, 1, axis=0),
        {"x": normal(5, 3)},
        "dx equals the truth shifted by 2 along axis 0",
    ),
    "the mean taken for a constant": (
        lambda x: (x - x.mean(-1, keepdims=True), None),
        lambda dy, _: dy,
        {"x": normal(3, 5)},
        "dx minus the truth is constant along axis 1",
    ),
    "the norm taken for a constant": (
        lambda x: (x / np.sqrt((x * x).sum(-1, keepdims=True)), x),
        lambda dy, x: dy / np.sqrt((x * x).sum(-1, keepdims=True)),
        {"x": normal(3, 5)},
        "dx minus the truth is along axis 1 a multiple of x",
    ),
    "by a path into a tree": (
        lambda params: (params["blocks"][0]["w"] @ params["x"], params),
        lambda dy, c: {"blocks": [{"w": c["x"] @ dy.T}], "x": c["blocks"][0]["w"].T @ dy},
        {"params": {"blocks": [{"w": normal(4, 4)}], "x": normal(4, 6)}},
        'dparams["blocks"][0]["w"] equals the transpose of the truth',
    ),
}


def last_rows(g, cache):
    table, ids, _ = cache
    dtable = np.zeros_like(table)
    dtable[ids] += g
    return dtable


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_layer(name):
    forward, backward, inputs, words = FRESH[name]
    found = said(forward, backward, **inputs)
    print(found)
    assert words in found


def test_an_argument_too_large_for_its_every_entry_has_the_ratio_of_some():
    found = said(lambda x, b: (x + b, None), lambda dy, _: (dy, dy.mean(0)), x=normal(6, 300), b=normal(300))
    assert (
        found
        == "in the 5 entries shown, db is the truth divided by 6; 6 is the length of axis 0 of x (a mean where a sum belongs?)"
    )


def test_a_shape_too_large_for_its_every_entry():
    assert "Summed over axis 0, db would have the right shape" in said(
        lambda x, b: (x + b, None), lambda dy, _: (dy, dy), x=normal(6, 300), b=normal(300)
    )


def test_the_entries_shown_of_a_small_argument_do_not_speak_for_the_others():
    scale, factor = np.repeat([1e3, 1.0], [5, 3]), np.repeat([2.0, 3.0], [5, 3])
    assert said(lambda x: (x * scale, None), lambda dy, _: dy * scale * factor, x=normal(8)) == ""


def test_names_of_factors():
    inputs = {"x": np.zeros((5, 7)), "seed": 11}
    assert name_factor(7 / 6, 1e-9, inputs) == "7/6 times the truth; 7 is the length of axis 1 of x (n - 1 for n?)"
    assert name_factor(-5 / 7, 1e-9, inputs).startswith("minus 5/7 times the truth; 5 is the length of axis 0 of x, 7 is")
    assert name_factor(35.0, 1e-9, inputs).startswith("35 times the truth; 35 is the number of entries of x")
    assert name_factor(11.0, 1e-9, inputs) == ""
    assert name_factor(7.0, 1e-4, inputs) == ""


def test_entries_without_a_common_ratio():
    entries = [Entry((i,), 2.0 + 0.1 * i, 1.0, 1e-12) for i in range(4)]
    assert hint_from_entries("x", entries) == ""
    assert hint_from_entries("x", [Entry((i,), -1.0 - i, 1.0 + i, 1e-12) for i in range(4)]).endswith("dx is minus the truth")
    assert hint_from_entries("x", [Entry((i,), 0.0, 1.0 + i, 1e-12) for i in range(4)]).endswith("dx is zero")
