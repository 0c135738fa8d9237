"""A training step as one graph: what is captured and replayed, and that the tests of it notice what would be wrong.

A captured step must be bitwise identical to the step run op by op, whatever is done between its replays; the second runs with the
opposite order of threads, so no order can matter either.
"""

import dataclasses
import inspect

import numpy as np
import pytest

from cuda_runs import QUICK, REFERENCE, TRAIN, VARIANTS, Run, assert_same_bits, every_precision, ops_of, pair
from gpt.training.step import train_step
from shim.host import HostRuntime, KernelError
from tensorlite import cuda
from tensorlite.cuda import optim
from tensorlite.cuda.ops import MAX_IN_FLIGHT
from tensorlite.cuda.runtime import device_key, graph
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.graph import RING_SIZE
from tensorlite.cuda.runtime.memory_pool import GraphMemoryPool
from tensorlite.random import step_key

pytestmark = pytest.mark.usefixtures("compiler")


def check_capture(precision="float32", variant="small", train=QUICK, steps=6):
    """Compare the losses, norms and buffers of some steps. At the end the device and the host agree on the step number."""
    eager, captured = pair(precision, variant, train)
    assert eager.steps(steps) == captured.steps(steps)
    assert_same_bits(eager, captured)
    assert captured.state.step == captured.function.device_step.array == steps


# ---- a captured step ----


@every_precision
@pytest.mark.parametrize(
    "variant", ["gpt", *(pytest.param(name, marks=pytest.mark.long) for name in VARIANTS if name not in ("gpt", "small"))]
)
def test_a_captured_step_makes_the_bits_of_the_step(variant, precision):
    """The steps cover warmup and cosine, with clipping, dropout and two micro-batches."""
    check_capture(precision, variant, TRAIN, steps=8)


class Spy(HostRuntime):
    """Records what the host asks for."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def launch(self, file, kernel, *size, **options):
        self.asked.append(kernel)
        super().launch(file, kernel, *size, **options)

    def gemm(self, *args, **options):
        self.asked.append("gemm")
        super().gemm(*args, **options)

    def empty(self, *args):
        self.asked.append("empty")
        return super().empty(*args)

    def capture(self, work):
        self.asked.append("capture")
        return super().capture(work)

    def take(self):
        """Return what was asked for since the last call."""
        asked, self.asked = self.asked, []
        return asked


def test_the_first_call_runs_the_second_captures_the_rest_only_launch():
    run = Run(cuda.CUDAOps("float32", check=False, runtime=Spy()), "small", QUICK, captured=True)
    spy = run.ops.runtime
    spy.take()
    run.step()
    first = spy.take()
    assert "capture" not in first
    assert len(first) > 50
    run.step()
    assert spy.take() == ["capture", *first]
    run.steps(4)
    assert spy.take() == []


@every_precision
def test_a_jump_to_another_step(precision):
    """A resumed run jumps, forwards or back. The host sets the step number, and the device counts on from it."""
    eager, captured = pair(precision)
    for jump in (None, 5, None, 2, 2**33):
        for run in (eager, captured):
            if jump is not None:
                run.state.step = jump
        assert eager.steps(3) == captured.steps(3)
    assert_same_bits(eager, captured)


def other_data(run):
    run.task = dataclasses.replace(run.task, data=run.task.data[::-1].copy())


def other_seed(run):
    run.task = dataclasses.replace(run.task, seed=8)


def change_train(run, **fields):
    run.task = dataclasses.replace(run.task, train=dataclasses.replace(run.task.train, **fields))


def change_config(run, **fields):
    run.task = dataclasses.replace(run.task, config=dataclasses.replace(run.task.config, **fields))


def other_batch(run):
    change_train(run, batch_size=4)


def other_rate(run):
    change_train(run, learning_rate=0.03)


def other_dropout(run):
    change_config(run, dropout=0.5)


def other_buffers(run):
    run.state = run.state.copy()


def longer_data(run):
    data = run.task.data
    run.task = dataclasses.replace(run.task, data=np.tile(data, 2)[: len(data) + 1])


def other_activation(run):
    change_config(run, activation="relu")


CHANGES = [other_data, other_seed, other_batch, other_rate, other_dropout, other_buffers, longer_data, other_activation]


@pytest.mark.parametrize("change", CHANGES)
def test_other_arguments_get_a_graph_of_their_own(change):
    """From the next call on the old graph is not replayed, also when the change is undone."""
    eager, captured = pair()
    kept = dict(vars(eager)), dict(vars(captured))
    assert eager.steps(3) == captured.steps(3)
    old = captured.function.graph
    for run in (eager, captured):
        change(run)
    found = captured.step()
    assert captured.function.graph is None  # this call ran op by op
    assert found == eager.step()
    assert captured.steps(3) == eager.steps(3)
    assert captured.function.graph not in (None, old)
    for run, before in zip((eager, captured), kept, strict=True):
        step = run.state.step
        vars(run).update(before)
        run.state.step = step
    assert captured.steps(3) == eager.steps(3)
    assert_same_bits(eager, captured)


def test_a_graph_reads_its_buffers_as_they_are():
    """The caller may write to the text, the parameters and the moments between steps."""
    eager, captured = pair()
    for _ in range(2):
        assert eager.steps(3) == captured.steps(3)
        for run in (eager, captured):
            run.task.data[:] = run.task.data[::-1].copy()
            run.state.params *= 0.9
            run.state.m *= 0.5
    assert_same_bits(eager, captured)


def test_losses_may_be_read_much_later():
    """They stay valid for twice `max_in_flight` steps; then another step overwrites the slot."""
    eager, captured = pair(variant="bigram")
    expected, ring = [], captured.function.loss_ring  # a call returns views of it
    assert captured.ops.max_in_flight == MAX_IN_FLIGHT
    assert RING_SIZE >= 2 * MAX_IN_FLIGHT
    for step in range(RING_SIZE + 3):
        expected.append(eager.step())
        assert captured.step() == expected[-1]
        for i in range(max(0, step - 2 * MAX_IN_FLIGHT + 1), step + 1):
            assert tuple(map(float, ring[i % RING_SIZE])) == expected[i]


def test_a_graph_is_of_one_backend():
    run = Run(ops_of(), captured=True)
    with pytest.raises(ValueError, match="one backend object"):
        run.function(ops_of(), run.task, run.state)


def test_a_device_step_is_a_number_and_some_more():
    device_step = DeviceStep(np.array(5, np.int64))
    assert [(device_step + 1).plus, (device_step + 1 + 2).plus, device_step.plus] == [1, 3, 0]
    with pytest.raises(ValueError, match="not from a later one"):  # a kernel derives the key from the very step that it reads
        ops_of().dropout_forward(np.zeros(4, np.float32), 0.5, device_key.step_key(7, device_step + 1))


def test_reference_and_cuda_compile_to_one_signature():
    ours, theirs = (inspect.signature(ops.compile).parameters for ops in (ops_of(), REFERENCE))
    assert list(ours) == list(theirs)
    assert REFERENCE.compile(train_step) is train_step


# ---- the tests above notice what would be wrong ----


def frozen_key(monkeypatch):
    """The bug: the step number at capture, in the place of its address."""

    def key(seed, step, row0=0):
        return step_key(seed, int(step.array) if isinstance(step, DeviceStep) else step, row0)

    monkeypatch.setattr(cuda.CUDAOps, "step_key", staticmethod(key))


def frozen_rate(monkeypatch):
    def cosine_lr(step, **schedule):
        rate = optim.optim.cosine_lr(int(step.array) if isinstance(step, DeviceStep) else step, **schedule)
        return optim.Schedule(step, rate, rate, 0, 1) if isinstance(step, DeviceStep) else rate

    monkeypatch.setattr(cuda.CUDAOps, "cosine_lr", staticmethod(cosine_lr))


def frozen_correction(monkeypatch):
    def adamw_(ops, params, grads, m, v, t, lr, *args, **options):
        if isinstance(t, DeviceStep):
            t, lr = int(t.array) + t.plus, optim.optim.cosine_lr(int(t.array), *lr[1:])
        optim.adamw_(ops, params, grads, m, v, t, lr, *args, **options)

    monkeypatch.setattr(cuda.CUDAOps, "adamw_", adamw_)


def one_block_for_two(monkeypatch):
    """The bug: a block that is freed while its array is in use."""

    class Careless(GraphMemoryPool):
        def take(self, nbytes):
            pooled = super().take(nbytes)
            pooled._free.append(pooled.block)
            return pooled

    monkeypatch.setattr(graph, "GraphMemoryPool", Careless)


def deaf_to_jumps(monkeypatch):
    call = graph.CapturedStep.__call__

    def jump(self, ops, task, state):
        self.step_on_device = state.step
        return call(self, ops, task, state)

    monkeypatch.setattr(graph.CapturedStep, "__call__", jump)


def wrong_slot(monkeypatch):
    monkeypatch.setattr(graph, "RING_SIZE", 3)


def no_other_graph(monkeypatch):
    """The first graph is taken for valid, whatever the arguments."""
    monkeypatch.setattr(graph.CapturedStep, "_is_valid_for", lambda self, task, state: bool(self.valid_for))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (frozen_key, check_capture),
        (frozen_rate, check_capture),
        (frozen_correction, check_capture),
        (one_block_for_two, check_capture),
        (wrong_slot, test_losses_may_be_read_much_later),
        (deaf_to_jumps, lambda: test_a_jump_to_another_step("float32")),
        *((no_other_graph, lambda change=change: test_other_arguments_get_a_graph_of_their_own(change)) for change in CHANGES),
    ],
)
def test_a_planted_mistake_is_noticed(mistake, check):
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises((AssertionError, KernelError)):
            check()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("optim.cu", "*step += 1;", ""),
        ("optim.cu", "loss_ring[2 * slot] = *loss;", ""),
        ("optim.cu", "*hyper.step + hyper.t : hyper.t", "hyper.t : hyper.t"),
        ("random.cuh", "if (key.step == nullptr) return", "return"),
    ],
)
def test_a_kernel_that_does_not_count_is_noticed(file, old, new):
    eager = Run(ops_of(), "bigram")
    captured = Run(ops_of(edits={file: [(old, new)]}), "bigram", captured=True)
    expected, found = eager.steps(5), captured.steps(5)
    assert found != expected or not np.array_equal(eager.state.params, captured.state.params)
