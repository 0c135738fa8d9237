"""Division that rounds up, on all small integers and on one that no float represents."""

from fractions import Fraction
from math import ceil

from tensorlite.integers import ceil_div, round_up


def test_ceil_div_and_round_up():
    for a in range(40):
        for b in range(1, 12):
            assert ceil_div(a, b) == ceil(Fraction(a, b))
            assert round_up(a, b) == min(m for m in range(0, 60, b) if m >= a)
    assert ceil_div(2**60 + 1, 2) == 2**59 + 1
