"""Dynamic loss scaling: its rule, its kernels, whole steps op by op and captured, and what shards and ranks decide.

A float32 run gets float16's trouble from `half_range.HalfRange`. Multiplication by a power of two is exact, so the run must be
bitwise identical to one without a loss scale in which the steps that overflowed are left out.
"""

import dataclasses
import math

import numpy as np
import pytest

from cuda_machines import both
from cuda_runs import QUICK, TRAIN, Run, assert_same_bits
from cuda_step_checks import loss_scale_rule, skipped_update, unscaled_gradients
from gpt.training.data_parallel import Workers
from gpt.training.distributed import MPIGroup
from half_range import HalfRange, LeavesOut, scaled_ops, value_on
from shim.host import HostRuntime
from tensorlite import ReferenceOps, loss_scale
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.loss_scale import LossScale
from thread_ranks import on_ranks

pytestmark = pytest.mark.usefixtures("compiler")
GROWS_AFTER = 3


@pytest.fixture(autouse=True)
def quick_growth(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", GROWS_AFTER)


# ---- the rule ----


def test_the_rule():
    """It halves after an overflow, doubles after so many finite steps in a row, and stays within its bounds."""
    scale, seen = LossScale(4.0), []
    for norm in (1.0, math.inf, 1.0, 1.0, math.nan, 0.0, 1.0, 1.0, 1.0, -math.inf, math.inf, math.inf):
        scale = scale.after(norm)
        seen.append((scale.scale, scale.finite_steps, scale.skipped_steps))
    assert seen[:3] == [(4.0, 1, 0), (2.0, 0, 1), (2.0, 1, 1)]
    assert seen[3:9] == [(2.0, 2, 1), (1.0, 0, 2), (1.0, 1, 2), (1.0, 2, 2), (2.0, 0, 2), (2.0, 1, 2)]
    assert seen[9:] == [(1.0, 0, 3), (1.0, 0, 4), (1.0, 0, 5)]
    assert LossScale(loss_scale.MAX_SCALE, GROWS_AFTER - 1, 7).after(1.0) == LossScale(loss_scale.MAX_SCALE, 0, 7)


@pytest.mark.parametrize(
    "fields",
    [{"scale": 3.0}, {"scale": 0.5}, {"scale": 2.0**127}, {"scale": math.nan}, {"scale": -2.0}, {"scale": 4}]
    + [{name: bad} for name in ("finite_steps", "skipped_steps") for bad in (-1, 1.0, 2**24, True)],
)
def test_fields_from_a_file_are_checked(fields):
    with pytest.raises(ValueError, match="loss scale"):
        LossScale(**fields)


def test_the_device_follows_the_rule():
    loss_scale_rule(both("float32"))


def test_packing_divides_by_the_loss_scale():
    unscaled_gradients(both("float32"))


def test_an_overflow_leaves_parameters_and_moments_as_they_are():
    skipped_update(both("float32"))


# ---- steps ----


@pytest.mark.parametrize("precision", ["float32", "bf16"])  # with the range of float32
@pytest.mark.parametrize(
    "variant", ["small", *(pytest.param(name, marks=pytest.mark.long) for name in ("gpt", "tied", "bigram", "odd", "residual"))]
)
def test_a_scaled_step_has_the_bits_of_the_step(variant, precision):
    """Without an overflow a power of two changes nothing, from the loss to the moments, over two micro-batches."""
    plain = Run(CUDAOps(precision, check=False, runtime=HostRuntime()), variant, TRAIN)
    scaled = Run(scaled_ops(precision, 2.0**12, runtime=HostRuntime), variant, TRAIN)
    assert plain.steps(4) == scaled.steps(4)
    assert_same_bits(plain, scaled)
    assert scaled.ops.loss_scale.array[0] == 2.0**13


def plain_ops():
    return LeavesOut("float32", check=False, runtime=HostRuntime())


def check_recovery(scaled, plain, steps=9):
    """Compare a run that overflows with one in which those steps are left out, step by step. Return the norms."""
    norms = []
    for _ in range(steps):
        before = scaled.state.params.copy()
        loss, norm = scaled.step()
        scaled.ops.loss_scale.follow(norm)
        norms.append(norm)
        assert math.isfinite(loss)
        if math.isfinite(norm):
            assert plain.step() == (loss, norm)
        else:
            plain.ops.left_out += 1
            plain.state.step += 1
            np.testing.assert_array_equal(scaled.state.params, before)
        for name in ("params", "m", "v"):
            ours, theirs = (getattr(run.state, name).view(np.uint32) for run in (scaled, plain))
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} after step {scaled.state.step}")
        assert value_on(scaled.ops.loss_scale) == scaled.ops.loss_scale.value
    return norms


def overflows(norms):
    return [step for step, norm in enumerate(norms) if not math.isfinite(norm)]


def test_a_run_recovers_from_overflows_as_if_those_steps_were_left_out():
    """The scale begins too large, is halved until it fits, and tries the next larger one after three good steps."""
    norms = check_recovery(Run(scaled_ops(), "small", TRAIN), Run(plain_ops(), "small", TRAIN))
    assert overflows(norms) == [0, 1, 2, 6]
    assert any(math.isnan(norm) for norm in norms)


def same(found, expected):
    return np.array_equal(found, expected, equal_nan=True)


def check_capture(precision="float32", train=QUICK, steps=12):
    eager = Run(scaled_ops(precision), "small", train)
    captured = Run(scaled_ops(precision, order="reversed"), "small", train, captured=True)
    found = captured.steps(steps)
    assert same(found, eager.steps(steps))
    assert_same_bits(eager, captured)
    assert len(overflows(norm for _, norm in found)) > 3
    for _, norm in found:
        captured.ops.loss_scale.follow(norm)
    assert value_on(captured.ops.loss_scale) == value_on(eager.ops.loss_scale) == captured.ops.loss_scale.value


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_captured_run_with_overflows_has_the_bits_of_the_run(precision):
    """The scale is read and updated by the replays: it falls, some steps are skipped, and it grows again."""
    check_capture(precision)


def check_planted_overflow():
    """An overflow in the middle of the replays. All graphs read the scale that the host has set."""
    eager = Run(scaled_ops(scale=2.0**10), "small", QUICK)
    captured = Run(scaled_ops(scale=2.0**10, order="reversed"), "small", QUICK, captured=True)
    assert captured.steps(4) == eager.steps(4)
    for run in (eager, captured):
        run.ops.loss_scale.set(LossScale(2.0**24, 1, 5))
    found = captured.steps(6)
    assert overflows(norm for _, norm in found) == [0, 1, 2, 3, 5]
    assert same(found, eager.steps(6))
    assert_same_bits(eager, captured)
    assert value_on(captured.ops.loss_scale) == LossScale(2.0**19, 0, 10)


def test_an_overflow_in_a_replayed_step():
    check_planted_overflow()


# ---- fp16 itself ----


@pytest.mark.parametrize(("scale", "lost"), [(1.0, 0.5), (2.0**16, 0.0)])
def test_small_gradients_are_lost_in_fp16_without_a_loss_scale(scale, lost):
    """A gradient below half of 2^-24 becomes zero. What fp16 can hold has an error of at most one rounding."""
    r, dloss, targets = np.random.default_rng(0), 2.0**-14, np.arange(16)
    logits = (2.0 * r.standard_normal((16, 65))).astype(np.float16)
    ops = scaled_ops("fp16", scale, runtime=HostRuntime)
    _, cache = ops.cross_entropy_forward(logits, targets)
    found = ops.cross_entropy_backward(ops.scale_loss(dloss), cache).astype(np.float64) / scale
    _, cache = ReferenceOps().cross_entropy_forward(logits.astype(np.float64), targets)
    exact = ReferenceOps().cross_entropy_backward(dloss, cache)
    float32 = 2.0**-18  # of the exponential of a difference of numbers below 16
    np.testing.assert_array_less(np.abs(found - exact), (2.0**-11 + float32) * np.abs(exact) + 2.0**-25 / scale)
    assert (np.mean(found == 0) > lost) == (scale == 1.0)


def test_a_captured_run_in_fp16_has_the_bits_of_the_run():
    """The overflows are fp16's own, from a loss scale that is too large."""
    eager, captured = (
        Run(scaled_ops("fp16", 2.0**19, order, runtime=HostRuntime), "small", QUICK, captured=order == "reversed")
        for order in ("forward", "reversed")
    )
    found = captured.steps(8)
    assert same(found, eager.steps(8))
    assert_same_bits(eager, captured)
    assert overflows(norm for _, norm in found)[0] == 0
    assert 0 < value_on(captured.ops.loss_scale).skipped_steps < 8


# ---- shards and ranks ----


def shard_of(ops, runtime):
    """Return a backend on another runtime with the loss scale of this one."""
    return CUDAOps("float32", check=False, runtime=runtime, loss_scale=ops.loss_scale)


def sharded(run, backends, **options):
    """Let the steps of a run be those of some shards, with a backend each."""
    made = iter(backends)
    workers = Workers(lambda: next(made), len(backends), **options)
    run.function = lambda ops, task, state: workers.train_step(task, state)
    return run


def check_shards(shard=shard_of):
    """The gradient of the second shard overflows, and that of the first does not."""
    first, plain = scaled_ops(runtime=HostRuntime), plain_ops()
    scaled = sharded(Run(first, "small", QUICK), [first, shard(first, HalfRange())])
    norms = check_recovery(scaled, sharded(Run(plain, "small", QUICK), [plain, plain]))
    assert overflows(norms) == [0, 1, 2, 3, 7]


def test_shards_have_one_loss_scale():
    check_shards()


def test_ranks_decide_alike():
    """Only one of two ranks overflows. The sum of the gradients tells the other, so both skip the same updates."""

    def work(mpi):
        ranks = MPIGroup(mpi)
        ops = scaled_ops(runtime=HalfRange if ranks.rank else HostRuntime)
        run = Run(ops, "small", QUICK)
        workers = Workers(lambda: ops, 2, ranks=ranks)
        run.function = lambda ops, task, state: workers.train_step(task, state)
        norms = [norm for _, norm in run.steps(8)]
        return norms, value_on(ops.loss_scale), run.state.params

    (norms, scale, params), (norms_1, scale_1, params_1) = on_ranks(work, [[0, 1]])
    assert overflows(norms) == [0, 1, 2, 3, 7]
    assert same(norms, norms_1)
    assert scale == scale_1
    np.testing.assert_array_equal(params.view(np.uint32), params_1.view(np.uint32))


# ---- the tests above notice what would be wrong ----


def frozen_scale(monkeypatch):
    """The bug: the scale at capture, in the place of its address."""
    monkeypatch.setattr(CUDAOps, "scale_loss", lambda ops, dloss: dloss * float(ops.loss_scale.array[0]))


def frozen_division(monkeypatch):
    pack = CUDAOps.pack_grads

    def pack_grads(ops, *args, **options):
        copy = DeviceLossScale(ops.runtime, value_on(ops.loss_scale))
        own, ops.loss_scale = ops.loss_scale, copy
        pack(ops, *args, **options)
        ops.loss_scale = own

    monkeypatch.setattr(CUDAOps, "pack_grads", pack_grads)


def unscaled_loss(monkeypatch):
    monkeypatch.setattr(CUDAOps, "scale_loss", ReferenceOps.scale_loss)


def update_per_micro_batch(monkeypatch):
    """The bug: the scale changes between the micro-batches of a step."""
    pack = CUDAOps.pack_grads

    def pack_grads(ops, leaves, slots, add=False):
        pack(ops, leaves, slots, add)
        ops.clip_grad_norm_(slots[0].reshape(-1), 0.0)

    monkeypatch.setattr(CUDAOps, "pack_grads", pack_grads)


def host_grows_later(monkeypatch):
    after = LossScale.after

    def late(scale, norm):
        grown = after(scale, norm)
        return grown if grown.scale <= scale.scale else dataclasses.replace(scale, finite_steps=scale.finite_steps + 1)

    monkeypatch.setattr(LossScale, "after", late)


def own_scale(ops, runtime):
    return scaled_ops(runtime=lambda _: runtime)


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (frozen_scale, check_planted_overflow),
        pytest.param(frozen_scale, check_capture, marks=pytest.mark.long),
        (frozen_division, check_planted_overflow),
        (unscaled_loss, test_a_run_recovers_from_overflows_as_if_those_steps_were_left_out),
        (update_per_micro_batch, test_a_run_recovers_from_overflows_as_if_those_steps_were_left_out),
        (host_grows_later, test_a_run_recovers_from_overflows_as_if_those_steps_were_left_out),
        pytest.param(lambda _: None, lambda: check_shards(own_scale), marks=pytest.mark.long),
    ],
)
def test_a_planted_mistake_is_noticed(mistake, check):
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises(AssertionError):
            check()
