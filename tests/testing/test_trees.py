"""Paths, copies and bitwise comparisons of trees of arrays."""

from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse

from tensorlite.testing.trees import copy_tree, flatten, is_array, map_arrays, map_pairs, same_bits, unchanged


class Pair(NamedTuple):
    w: object
    b: object


TREE = {"blocks": [{"w": 1.0}, {"w": 2.0, 3: 3.0}], "pair": Pair(4.0, (5.0, [])), "none": None}


def test_a_leaf_has_the_path_that_python_would_write():
    leaves = flatten(TREE, "params")
    assert list(leaves) == [
        'params["blocks"][0]["w"]',
        'params["blocks"][1]["w"]',
        'params["blocks"][1][3]',
        "params.pair.w".replace(".pair", '["pair"]'),
        'params["pair"].b[0]',
        'params["none"]',
    ]
    for path, leaf in leaves.items():
        assert eval(path, {"params": TREE}) is leaf
    assert flatten(7, "x") == {"x": 7}
    assert flatten([], "x") == {}


def test_a_mapped_tree_has_the_same_containers():
    doubled = map_arrays(lambda leaf: leaf and 2 * leaf, TREE)
    assert doubled["pair"] == Pair(8.0, (10.0, []))
    assert doubled["blocks"] == [{"w": 2.0}, {"w": 4.0, 3: 6.0}]
    assert TREE["pair"].w == 4.0
    for mapping in (OrderedDict(b=1.0, a=2.0), defaultdict(float, b=1.0, a=2.0)):
        mapped = map_arrays(lambda leaf: -leaf, mapping)
        assert type(mapped) is type(mapping)
        assert list(mapped.items()) == [("b", -1.0), ("a", -2.0)]
    assert map_pairs(lambda a, b: a - b, (1.0, [2.0]), (3.0, [5.0])) == (-2.0, [-3.0])


def test_copies_share_what_is_no_array():
    tree = {"a": np.ones(2), "matrix": scipy.sparse.eye_array(3), "objects": np.array([object()]), "open": iter([1])}
    copied = copy_tree(tree)
    copied["a"][0] = 7
    assert tree["a"][0] == 1
    assert all(copied[name] is tree[name] for name in ("matrix", "objects", "open"))
    assert [is_array(leaf) for leaf in tree.values()] == [True, False, False, False]


NAN, OTHER_NAN = np.array([0x7FF8000000000000, 0x7FF8000000000001], np.uint64).view(np.float64)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.0]), True),
        (np.array([0.0]), np.array([-0.0]), False),
        (0.0, -0.0, False),
        (np.array([NAN]), np.array([NAN]), True),
        (np.array([NAN]), np.array([OTHER_NAN]), False),
        (np.ones(2), np.ones(2, np.float32), False),
        (np.ones((2, 1)), np.ones(2), False),
        (np.ones((4, 6))[::2, ::3], np.ones((2, 2)), True),
        (np.array(1.0), np.array(1.0), True),
        (np.ones(0), np.ones(0), True),
        ((1.0, None), (1.0, None), True),
        ((1.0, None), (1.0, 0.0), False),
        ([1.0], [1.0, 2.0], False),
        ({"a": 1.0}, {"b": 1.0}, False),
        (np.ones(2), [1.0, 1.0], False),
        (1000, int("1000"), True),
        (scipy.sparse.eye_array(2), scipy.sparse.eye_array(2), False),
    ],
)
def test_same_bits_compares_bits(a, b, same):
    assert same_bits(a, b) is same


def test_unchanged_sees_writes_and_overlooks_additions():
    cache = {"x": np.ones(2), "parts": [1, "text"]}
    before = copy_tree(cache)
    cache["more"] = np.ones(1)
    cache["parts"].append(2)
    assert unchanged(before, cache)
    for spoil in (lambda c: c["x"].fill(0), lambda c: c["parts"].pop(0), lambda c: c.pop("x"), lambda c: c.update(x=None)):
        spoilt = copy_tree(cache)
        spoil(spoilt)
        assert not unchanged(before, spoilt)
