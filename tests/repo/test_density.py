"""The reference tier and the model files stay easy to read: little per line, and few lines."""

import sys

import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import density


def test_the_measure_on_a_function_counted_by_hand(tmp_path):
    path = tmp_path / "some.py"
    path.write_text('def f(x, y=(1, 2)):\n    """Not counted."""\n\n    # nor this\n    z = x\n\n    return z\n')
    # Assign, Name z, Store, Name x, Load; Return, Name z, Load (each Name has a context of its own): 8 nodes on 2 lines
    assert list(density.densities(path)) == [(4.0, "some.f")]


@pytest.mark.parametrize("folder", ["tensorlite/reference", "tensorlite/reference/longhand", "gpt/models"])
def test_the_code_to_read_is_not_dense(folder):
    median, densest, _ = density.summary(sorted((ROOT / folder).glob("*.py")))
    assert median <= 13
    assert densest.nodes_per_line <= 23, densest.function


def test_the_book_is_short():
    assert density.book_lines() < 1000
