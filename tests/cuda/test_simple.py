"""The kernels of kernels/simple: near the float64 reference, and an oracle for the fused kernels, which compute the same.

The checks are those of the fused kernels, in two orders of threads. simple_bounds.py derives how near is near enough. Mistakes
planted in the simple kernels show that the checks see such things.
"""

import functools

import pytest

import cuda_op_checks as op_checks
from cuda_machines import Both, both
from cuda_op_checks import attention, check_all
from shim.host import KERNELS, KernelError
from simple_kernels import AGAINST_FUSED, AGAINST_REFERENCE, Oracle, Simple

pytestmark = pytest.mark.usefixtures("compiler")


@functools.cache
def simple():
    return Simple()


@pytest.mark.parametrize("name", AGAINST_REFERENCE)
def test_a_simple_kernel_agrees_with_the_reference(name):
    """And no bound is loose, as in test_ops.py."""
    assert min(check_all(name, simple(), AGAINST_REFERENCE)) > 1 / 5


@pytest.mark.parametrize("name", AGAINST_FUSED)
def test_a_fused_kernel_agrees_with_the_simple_one(name, monkeypatch):
    monkeypatch.setattr(op_checks, "REFERENCE", Oracle(simple().ops[0]))
    check_all(name, both("float32"), AGAINST_FUSED)


@pytest.mark.long
def test_the_oracle_notices_a_mistake_in_a_fused_kernel(monkeypatch):
    monkeypatch.setattr(op_checks, "REFERENCE", Oracle(simple().ops[0]))
    edited = Both("float32", edits={"cross_entropy.cu": [("max_logit + logf", "logf")]})
    with pytest.raises(AssertionError, match="out of bounds"):
        check_all("cross_entropy", edited, AGAINST_FUSED)


LAYERNORM, CROSS_ENTROPY, ATTENTION = (f"simple/{name}.cu" for name in AGAINST_REFERENCE)
layernorm, cross_entropy = (AGAINST_REFERENCE[name][0] for name in ("layernorm", "cross_entropy"))
two_heads = functools.partial(attention, B=1, T=33, H=2, D=5)
# A file, a text that it contains once, the text that replaces it, and the check that must notice.
PLANTED = [
    (LAYERNORM, "xhat * g_xhat_mean);", "g_xhat_mean);", layernorm),
    (LAYERNORM, "if (i >= C) return;", "if (i > C) return;", functools.partial(layernorm, C=33)),
    (CROSS_ENTROPY, "v] - max_logit);", "v]);", functools.partial(cross_entropy, size=1e4)),
    (CROSS_ENTROPY, "(dloss / rows)", "dloss", cross_entropy),
    (ATTENTION, "s = n / T * T; s <= n; s++) {  // query", "s = 0; s <= n; s++) {  // query", two_heads),
    (ATTENTION, "long long t = n;", "long long t = n / T * T;", two_heads),
]
MORE_PLANTED = [
    (LAYERNORM, "* (x[n * C + i] - mean[n]) / C;", "* (x[n * C + i] - mean[n]) / (C - 1);", layernorm),
    (CROSS_ENTROPY, "*loss = sum / rows", "*loss = sum", cross_entropy),
    (ATTENTION, "l = l * alpha + p", "l = l + p", two_heads),
    (LAYERNORM, "g_xhat_mean += g * xhat / C", "g_xhat_mean += xhat / C", layernorm),
    (LAYERNORM, "dw[i] += dy[n * C + i] * xhat", "dw[i] = dy[n * C + i] * xhat", layernorm),
    (CROSS_ENTROPY, "max_logit + logf(exp_sum)", "logf(exp_sum)", cross_entropy),
    (CROSS_ENTROPY, "v == targets[n]", "v == targets[0]", cross_entropy),
    (ATTENTION, "y[n * D + d] * alpha", "y[n * D + d]", two_heads),
    (ATTENTION, "s <= n; s++) {  // from", "s < n; s++) {  // from", two_heads),
    (ATTENTION, "d] += p * dy", "d] += ds * dy", two_heads),
]
ALL_PLANTED = PLANTED + [pytest.param(planted, marks=pytest.mark.long) for planted in MORE_PLANTED]


@pytest.mark.parametrize("planted", ALL_PLANTED, ids=lambda planted: f"{planted[0]}: {planted[1]} -> {planted[2]}")
def test_a_planted_mistake_is_noticed(planted):
    file, old, new, check = planted
    assert (KERNELS / file).read_text().count(old) == 1
    with pytest.raises((AssertionError, KernelError)) as caught:
        check(Simple({file: [(old, new)]}))
    assert "does not compile" not in str(caught.value)
    check(simple())
