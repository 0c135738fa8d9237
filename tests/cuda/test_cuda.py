"""What the CUDA backend does on the host: steps as graphs, their memory, generation, and what is refused. Kernels run on the CPU.

A captured step must make the very bits of the step run op by op, whatever is done between its launches; the second runs with the
opposite order of threads, so no order can matter either.
"""

import contextlib
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fake_cupy
from cuda_bounds import as_rounded
from gpt.config import TrainConfig
from gpt.generate import Sampling, generate
from gpt.models import MODELS
from gpt.training.step import TrainState, loss_and_gradients, train_step
from paths import ROOT, SUPPORT, TESTS
from shim.host import HostRuntime, KernelError, owner_of, require_compiler
from small import config_of, start
from tensorlite import DeviceError, KVCache, ReferenceOps, cuda
from tensorlite.cuda import optim
from tensorlite.cuda.ops import MAX_IN_FLIGHT, PRECISIONS
from tensorlite.cuda.runtime import device_key, graph
from tensorlite.cuda.runtime.cublaslt import MatmulProblem
from tensorlite.cuda.runtime.device import _epilogue
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.graph import RING_SIZE
from tensorlite.cuda.runtime.memory_pool import ROUND, GraphMemoryPool
from tensorlite.random import step_key
from tests.cuda import test_cuda_kernels as kernels
from tests.cuda import test_gpu

REFERENCE = ReferenceOps(check=False)
every_precision = pytest.mark.parametrize("precision", ["float32", "bf16"])
TRAIN = TrainConfig(
    batch_size=3, max_iters=10, learning_rate=0.01, min_lr=0.001, warmup_iters=3, grad_clip=1.0, gradient_accumulation_steps=2
)
SIZE = {"n_embd": 32, "n_head": 2, "block_size": 8, "n_layer": 1, "dropout": 0.2}
QUICK = dataclasses.replace(TRAIN, batch_size=2, gradient_accumulation_steps=1)
VARIANTS = {
    "gpt": {"model": "gpt", "n_layer": 2},
    "small": {"model": "gpt"},
    "tied": {"model": "gpt", "tied": True},
    "no bias": {"model": "gpt", "bias": False},
    "odd": {"model": "gpt", "n_embd": 15, "n_head": 3},  # nothing in memory begins where the next vector load may
    "relu": {"model": "gpt", "activation": "relu"},
    "no dropout": {"model": "gpt", "dropout": 0.0},
    "residual": {"model": "residual"},
    "feedforward": {"model": "feedforward"},
    "multihead": {"model": "multihead"},
    "head": {"model": "head", "n_head": 1, "n_embd": 16},
    "bigram": {"model": "bigram", "dropout": 0.0},
}
every_variant = pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "small"])


@pytest.fixture(autouse=True, scope="module")
def compiler():
    require_compiler()


def ops_of(precision="float32", order="forward", **options):
    return cuda.CUDAOps(precision, check=False, runtime=HostRuntime(order, **options))


class Run:
    """A model in training."""

    def __init__(self, ops, variant="gpt", train=TRAIN, seed=7, captured=False, **fields):
        self.ops, self.train, self.seed = ops, train, seed
        self.config = config_of(**SIZE | VARIANTS[variant] | fields)
        self.model = MODELS[self.config.model]
        self.state = start(self.config, std=0.3, dtype=np.float32)
        self.data = np.random.default_rng(0).integers(0, self.config.vocab_size, 300).astype(np.uint16)
        self.function = ops.compile(train_step) if captured else train_step

    def step(self):
        """Loss and norm."""
        found = self.function(self.ops, self.model, self.state, self.data, self.config, self.train, self.seed)
        return tuple(float(x) for x in found)

    def steps(self, n):
        return [self.step() for _ in range(n)]

    def buffers(self):
        return [self.state.params, self.state.grads, self.state.m, self.state.v]


def assert_same_bits(one, other):
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def pair(precision="float32", variant="small", train=QUICK):
    """The same training op by op, and captured, on machines of opposite orders."""
    return Run(ops_of(precision), variant, train), Run(ops_of(precision, "reversed"), variant, train, captured=True)


def check_capture(precision="float32", variant="small", train=QUICK, steps=6):
    """The losses, norms and all buffers of some steps; the counts of the device and the host agree at the end."""
    eager, captured = pair(precision, variant, train)
    assert eager.steps(steps) == captured.steps(steps)
    assert_same_bits(eager, captured)
    assert captured.state.step == captured.function.counter.array == steps


# ---- a captured step ----


@every_precision
@pytest.mark.parametrize(
    "variant", ["gpt", *(pytest.param(name, marks=pytest.mark.long) for name in VARIANTS if name not in ("gpt", "small"))]
)
def test_a_captured_step_makes_the_bits_of_the_step(variant, precision):
    """Over warmup and cosine, with clipping, dropout and two micro-batches."""
    check_capture(precision, variant, TRAIN, steps=8)


@every_precision
@every_variant
def test_the_first_step_follows_the_reference(variant, precision):
    """Loss and every parameter's gradient, before clipping; later steps magnify what they begin with and say less."""
    run = Run(ops_of(precision), variant)
    run.state.params[...] = run.state.params.astype(run.ops.dtype)  # both start from the numbers that are computed with

    def loss_and_views(ops, params):
        state = TrainState.start(run.state.table, params, np)
        loss = loss_and_gradients(ops, run.model, state, run.data, run.config, run.train, run.seed)
        return [np.asarray(loss), *state.table.views(state.grads)]

    params = run.state.params.astype(np.float64)
    expected, bounds = as_rounded(lambda params: loss_and_views(REFERENCE, params), params, run.ops.dtype)
    names = ["loss", *(param.name for param in run.state.table)]
    found = loss_and_views(run.ops, run.state.params)
    errors = {name: np.abs(a - b).max() / bound for name, a, b, bound in zip(names, found, expected, bounds, strict=True)}
    assert max(errors.values()) <= 1, {name: error for name, error in errors.items() if error > 1}
    assert max(errors.values()) > 1 / 8  # the bounds are not loose


class Spy(HostRuntime):
    """Counts what the host asks for."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def launch(self, file, name, *args, **options):
        self.asked.append(name)
        super().launch(file, name, *args, **options)

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
        """What was asked for since the last time."""
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
    """As a resumed run makes it, forwards and back: the host says where, and the device counts on from there."""
    eager, captured = pair(precision)
    for jump in (None, 5, None, 2, 2**33):
        for run in (eager, captured):
            if jump is not None:
                run.state.step = jump
        assert eager.steps(3) == captured.steps(3)
    assert_same_bits(eager, captured)


def other_data(run):
    run.data = run.data[::-1].copy()


def other_seed(run):
    run.seed = 8


def other_batch(run):
    run.train = dataclasses.replace(run.train, batch_size=4)


def other_rate(run):
    run.train = dataclasses.replace(run.train, learning_rate=0.03)


def other_dropout(run):
    run.config = dataclasses.replace(run.config, dropout=0.5)


def other_buffers(run):
    run.state = run.state.copy()


def longer_data(run):
    run.data = np.tile(run.data, 2)[: len(run.data) + 1]


def other_activation(run):
    run.config = dataclasses.replace(run.config, activation="relu")


CHANGES = [other_data, other_seed, other_batch, other_rate, other_dropout, other_buffers, longer_data, other_activation]


@pytest.mark.parametrize("change", CHANGES)
def test_other_arguments_get_a_graph_of_their_own(change):
    """From the next call on, never the old graph; and back again."""
    eager, captured = pair()
    kept = dict(vars(eager)), dict(vars(captured))
    assert eager.steps(3) == captured.steps(3)
    old = captured.function.graph
    for run in (eager, captured):
        change(run)
    found = captured.step()
    assert captured.function.graph is None  # op by op again
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
    """The text, the parameters and the moments may be written to between steps."""
    eager, captured = pair()
    for _ in range(2):
        assert eager.steps(3) == captured.steps(3)
        for run in (eager, captured):
            run.data[:] = run.data[::-1].copy()
            run.state.params *= 0.9
            run.state.m *= 0.5
    assert_same_bits(eager, captured)


def test_losses_may_be_read_much_later():
    """Up to `max_in_flight` steps, and as much again; then the slot is another step's."""
    eager, captured = pair(variant="bigram")
    expected, ring = [], captured.function.ring  # of which a call returns views
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
        run.function(ops_of(), run.model, run.state, run.data, run.config, run.train, run.seed)


def test_a_counter_is_a_number_and_some_more():
    counter = DeviceStep(np.array(5, np.int64))
    assert [(counter + 1).plus, (counter + 1 + 2).plus, counter.plus] == [1, 3, 0]
    with pytest.raises(ValueError, match="not of another"):  # a kernel mixes the key of the very number that it finds
        ops_of().dropout_forward(zeros(4), 0.5, device_key.step_key(7, counter + 1))


def test_reference_and_cuda_compile_to_one_signature():
    ours, theirs = (inspect.signature(ops.compile).parameters for ops in (ops_of(), REFERENCE))
    assert list(ours) == list(theirs)
    assert REFERENCE.compile(train_step) is train_step


# ---- memory of a graph ----


class Requests(GraphMemoryPool):
    """Notes each block that is lent, and how large it is asked for."""

    instances: list = []  # noqa: RUF012

    def __init__(self, allocate):
        super().__init__(allocate)
        self.lent, self.asked, self.made = [], 0, 0
        self.instances.append(self)

        def counted(nbytes, allocate=self._allocate):
            self.made += 1
            return allocate(nbytes)

        self._allocate = counted

    def take(self, nbytes):
        lease = super().take(nbytes)
        self.lent.append((HostRuntime.address(lease.block), nbytes))
        self.asked += nbytes
        return lease


@every_precision
def test_a_graph_reuses_memory_within_the_step_and_never_asks_for_more(precision, monkeypatch):
    monkeypatch.setattr(graph, "GraphMemoryPool", Requests)
    run = Run(ops_of(precision), captured=True)
    run.step()
    arena = run.function.arena
    assert isinstance(arena, Requests)
    assert arena.nbytes < arena.asked
    made, size, requests = arena.made, arena.nbytes, [nbytes for _, nbytes in arena.lent]
    arena.lent = []
    run.step()  # captured: what it asks for is what the first run asked for
    assert [nbytes for _, nbytes in arena.lent] == requests
    arena.lent = []
    run.steps(5)
    assert arena.lent == []
    assert (arena.made, arena.nbytes) == (made, size)


def blocks_of(arena):
    """Addresses of all blocks, when none is lent."""
    return {HostRuntime.address(block) for free in arena._free.values() for block in free}


def test_all_blocks_come_back_after_a_step():
    run = Run(ops_of(), "small", QUICK, captured=True)
    for _ in range(4):
        run.step()
        arena = run.function.arena
        assert sum(block.nbytes for free in arena._free.values() for block in free) == arena.nbytes


def test_what_is_computed_between_two_steps_is_not_in_the_graphs_memory():
    """And does not disturb it."""
    eager, captured = pair()
    x, held = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32), []
    for _ in range(5):
        assert eager.step() == captured.step()
        blocks = blocks_of(captured.function.arena)
        for ops in (eager.ops, captured.ops):
            y, cache = ops.gelu_forward(x)
            held += [y, ops.gelu_backward(x, cache), *ops.layernorm_backward(x, ops.layernorm_forward(x, x[0], x[1])[1])]
        assert captured.ops.runtime.arena is None
        for array in held:
            owner = owner_of(array)
            assert HostRuntime.address(owner) not in blocks
    expected = held[: len(held) // 5]
    for i, array in enumerate(held):
        np.testing.assert_array_equal(array, expected[i % len(expected)])
    assert_same_bits(eager, captured)


def test_a_block_is_lent_to_one_at_a_time():
    arena = GraphMemoryPool(lambda nbytes: bytearray(nbytes))
    one, two = arena.take(10), arena.take(10)
    assert one.block is not two.block
    assert arena.nbytes == 2 * ROUND == len(one.block) + len(two.block)
    block = one.block
    del one
    assert arena.take(ROUND).block is block  # of one rounded size, the last that came back
    three = arena.take(ROUND + 1)
    assert len(three.block) == 2 * ROUND
    assert arena.nbytes == 4 * ROUND
    assert len(arena.take(0).block) == ROUND


# ---- the tests above notice what would be wrong ----


def frozen_key(monkeypatch):
    """The number of the step at capture, in the place of where it is."""

    def key(seed, step, row0=0):
        return step_key(seed, int(step.array) if isinstance(step, DeviceStep) else step, row0)

    monkeypatch.setattr(cuda.CUDAOps, "step_key", staticmethod(key))


def frozen_rate(monkeypatch):
    def cosine_lr(step, *numbers):
        rate = optim.optim.cosine_lr(int(step.array) if isinstance(step, DeviceStep) else step, *numbers)
        return optim.Schedule(step, rate, rate, 0, 1) if isinstance(step, DeviceStep) else rate

    monkeypatch.setattr(cuda.CUDAOps, "cosine_lr", staticmethod(cosine_lr))


def frozen_correction(monkeypatch):
    def adamw_(ops, params, grads, m, v, t, lr, *args, **options):
        if isinstance(t, DeviceStep):
            t, lr = int(t.array) + t.plus, optim.optim.cosine_lr(int(t.array), *lr[1:])
        optim.adamw_(ops, params, grads, m, v, t, lr, *args, **options)

    monkeypatch.setattr(cuda.CUDAOps, "adamw_", adamw_)


def one_block_for_two(monkeypatch):
    """A block that is given back while its array is in use."""

    class Careless(GraphMemoryPool):
        def take(self, nbytes):
            lease = super().take(nbytes)
            lease._free.append(lease.block)
            return lease

    monkeypatch.setattr(graph, "GraphMemoryPool", Careless)


def deaf_to_jumps(monkeypatch):
    call = graph.CapturedStep.__call__

    def jump(self, ops, model, state, *args):
        self.counted = state.step
        return call(self, ops, model, state, *args)

    monkeypatch.setattr(graph.CapturedStep, "__call__", jump)


def wrong_slot(monkeypatch):
    monkeypatch.setattr(graph, "RING_SIZE", 3)


def no_other_graph(monkeypatch):
    """Equal to any arguments."""
    call = graph.CapturedStep.__call__

    class Same(tuple):
        def __ne__(self, other):
            return False

        __hash__ = tuple.__hash__

    def anything_goes(self, *args):
        if self.made_for is not None:
            self.made_for = Same(self.made_for)
        return call(self, *args)

    monkeypatch.setattr(graph.CapturedStep, "__call__", anything_goes)


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
        ("optim.cu", "ring[2 * slot] = *loss;", ""),
        ("optim.cu", "*u.step + u.t : u.t", "u.t : u.t"),
        ("random.cuh", "if (key.step == nullptr) return", "return"),
    ],
)
def test_a_kernel_that_does_not_count_is_noticed(file, old, new):
    eager = Run(ops_of(), "bigram")
    captured = Run(ops_of(edits={file: [(old, new)]}), "bigram", captured=True)
    expected, found = eager.steps(5), captured.steps(5)
    assert found != expected or not np.array_equal(eager.state.params, captured.state.params)


# ---- generation ----


def model_in(ops, variant="gpt", **fields):
    run = Run(ops, variant, **fields)
    return run.config, run.model, run.state.table.tree(run.ops.compute_params(run.state.params))


@every_precision
@pytest.mark.parametrize("variant", ["gpt", "tied", "residual", "head", "bigram"])
def test_logits_with_a_past_follow_the_reference(variant, precision):
    """At once, and in pieces whose keys and values are kept: 5 positions, then 1 three times, then 2 more of a context of 10."""
    ops = ops_of(precision)
    run = Run(ops, variant, block_size=10)
    idx = np.random.default_rng(1).integers(0, run.config.vocab_size, (2, 10))
    run.state.params[...] = run.state.params.astype(ops.dtype)

    def logits(ops, params, cuts=()):
        tree, kv_cache = run.state.table.tree(ops.compute_params(params)), KVCache(run.config.n_layer, 10) if cuts else None
        return [
            np.concatenate(
                [run.model.logits(ops, tree, part, run.config, kv_cache) for part in np.split(idx, cuts, axis=1)], axis=1
            )
        ]

    (exact,), (bound,) = as_rounded(lambda params: logits(REFERENCE, params), run.state.params.astype(np.float64), ops.dtype)
    for cuts in ((), (5, 6, 7, 8)):
        (found,) = logits(ops, run.state.params, cuts)
        assert found.dtype == ops.dtype
        assert np.abs(found.astype(np.float64) - exact).max() <= bound


@pytest.mark.parametrize("cached", [True, False])
def test_generation_writes_what_the_reference_writes(cached):
    """Within the context and beyond it."""
    run = Run(ops_of())
    params = run.state.table.tree(run.state.params)
    tokens = [
        list(generate(ops, run.model, params, run.data[:3].astype(np.int64), 12, run.config, Sampling(), seed=3, cached=cached))
        for ops in (run.ops, REFERENCE)
    ]
    assert tokens[0] == tokens[1]


@every_precision
def test_a_loss_without_a_cache_is_the_loss(precision):
    ops = ops_of(precision)
    config, model, params = model_in(ops)
    idx, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, 3, config.block_size))
    loss, cache = model.forward(ops, params, idx, targets, config, keep=False)
    assert cache == ()
    assert loss == model.forward(ops, params, idx, targets, config)[0]


# ---- what it is, and what it refuses ----


def test_signatures_equal_the_references():
    """On objects, as a model sees them; a backend may add methods, not change or lose one."""
    ops = ops_of()
    for name, member in inspect.getmembers(ReferenceOps(), callable):
        if not name.startswith("_"):
            theirs, ours = (inspect.signature(function).parameters.values() for function in (getattr(ops, name), member))
            assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours], name


def test_every_override_has_its_pair():
    own = {name for name in vars(cuda.CUDAOps) if name.endswith(("_forward", "_backward"))}
    alone = {
        name for name in own if name.replace("_forward", "_backward") not in own or name.replace("_backward", "_forward") not in own
    }
    assert alone == {"prenorm_layernorm_backward"}  # its forward is layernorm's


def test_precisions():
    assert PRECISIONS == ("float32", "tf32", "bf16")
    assert [str(ops_of(precision).dtype) for precision in PRECISIONS] == ["float32", "float32", "bfloat16"]
    for bad in ("fp16", "float64", None):
        with pytest.raises(ValueError, match=f"precision must be one of float32, tf32, bf16, not {bad!r}"):
            ops_of(bad)


def test_tf32_differs_in_its_products_alone():
    """Which the runtime is told; on the CPU they are float32's."""
    told = []

    class Told(HostRuntime):
        def gemm(self, *args, compute, **options):
            told.append(compute)
            super().gemm(*args, compute=compute, **options)

    runs = [Run(cuda.CUDAOps(precision, check=False, runtime=Told()), "small", QUICK) for precision in ("float32", "tf32")]
    assert runs[0].steps(2) == runs[1].steps(2)
    assert told == ["float32"] * (len(told) // 2) + ["tf32"] * (len(told) // 2)


def zeros(*shape):
    return np.zeros(shape, np.float32)


IDS = np.zeros(3, np.int64)
ARGUMENTS = {  # of each op that has kernels: float arrays, and ids
    "linear": (zeros(3, 4), zeros(4, 5), zeros(5)),
    "embedding": (IDS, zeros(7, 4)),
    "position_embedding": (zeros(3, 4), zeros(5, 4)),
    "layernorm": (zeros(3, 32), zeros(32), zeros(32)),
    "gelu": (zeros(3, 4),),
    "relu": (zeros(3, 4),),
    "attention": (zeros(1, 3, 48), 1),
    "dropout": (zeros(3, 4), 0.5, step_key(1, 2)),
    "residual": (zeros(3, 4), zeros(3, 4), 0.5, step_key(1, 2)),
    "cross_entropy": (zeros(3, 4), IDS),
    "mlp": (zeros(3, 4), zeros(4, 8), zeros(8), zeros(8, 4), zeros(4)),
    "dropout_add_layernorm": (zeros(3, 32), zeros(3, 32), zeros(32), zeros(32)),
    "linear_cross_entropy": (zeros(3, 4), zeros(4, 5), zeros(5), IDS),
    "self_attention": (zeros(1, 3, 16), zeros(16, 48), zeros(48), zeros(16, 16), zeros(16), 1),
    "prenorm_layernorm": (zeros(3, 32), zeros(32), zeros(32)),
}
every_op = pytest.mark.parametrize("name", ARGUMENTS)


def test_every_op_is_asked():
    assert {f"{name}_forward" for name in ARGUMENTS} == {name for name in vars(ReferenceOps) if name.endswith("_forward")} - {
        "softmax_forward",  # inside attention
        "activation_forward",
    }


def with_each(arguments, change):
    """The arguments with one float array changed, for each in turn."""
    for i, a in enumerate(arguments):
        if isinstance(a, np.ndarray) and a.dtype == np.float32:
            yield (*arguments[:i], change(a), *arguments[i + 1 :])


@every_precision
@every_op
def test_float64_is_refused(name, precision):
    ops = ops_of(precision)
    forward = getattr(ops, f"{name}_forward")
    for arguments in with_each(ARGUMENTS[name], lambda a: a.astype(np.float64)):
        with pytest.raises(TypeError, match="the CUDA backend computes in float32 and bfloat16, not float64; use ReferenceOps"):
            forward(*arguments)


@pytest.mark.parametrize("name", ["add", "pack_grads", "global_norm", "clip_grad_norm_", "adamw_", "cross_entropy_backward"])
def test_float64_is_refused_where_no_op_is(name):
    """By the backend itself: a kernel would read it as what it is not."""
    ops, a, b = ops_of(), zeros(8), np.zeros(8)
    _, cache = ops.cross_entropy_forward(zeros(3, 4), IDS)
    calls = {
        "add": [(a, b), (b, a), (b, b)],
        "pack_grads": [([b], [a]), ([a], [b])],
        "global_norm": [(b,)],
        "clip_grad_norm_": [(b, 1.0)],
        "adamw_": [(*(b if i == j else a for j in range(4)), 1, 0.1) for i in range(4)],
        "cross_entropy_backward": [(np.asarray(0.7), cache)],
    }[name]
    for arguments in calls:
        with pytest.raises(TypeError, match="the CUDA backend computes in float32"):
            getattr(ops, name)(*arguments)


@every_op
def test_a_list_is_refused(name):
    forward = getattr(ops_of(), f"{name}_forward")
    for arguments in with_each(ARGUMENTS[name], lambda a: a.tolist()):
        with pytest.raises(TypeError, match="list"):
            forward(*arguments)


@every_op
def test_arrays_of_two_libraries_are_refused(name, monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    forward = getattr(ops_of(), f"{name}_forward")
    arrays = [a for a in ARGUMENTS[name] if isinstance(a, np.ndarray)]
    for arguments in with_each(ARGUMENTS[name], module.asarray) if len(arrays) > 1 else ():
        with pytest.raises(TypeError, match="one library"):
            forward(*arguments)


@every_op
def test_what_the_reference_refuses_is_refused_in_its_words(name):
    """Each array in turn loses its last column, or its last axis, or gets one more."""
    arguments = ARGUMENTS[name]
    for i, a in enumerate(arguments):
        for wrong in (lambda a: a[..., :-1], lambda a: a[..., 0], lambda a: a[None]) if isinstance(a, np.ndarray) else ():
            changed = (*arguments[:i], wrong(a), *arguments[i + 1 :])
            said = []
            for ops in (ReferenceOps(), cuda.CUDAOps("float32", runtime=HostRuntime())):
                try:
                    getattr(ops, f"{name}_forward")(*changed)
                    said.append(None)
                except (TypeError, ValueError, IndexError) as error:
                    said.append((type(error), str(error)))
            if said[0] is not None and not said[0][1].startswith("cross_entropy: logits"):  # of a head, which has none to name yet
                assert said[0] == said[1], i
            assert (said[0] is None) >= (said[1] is None), (i, said)


def test_ids_out_of_range_are_refused_where_they_are_looked_at():
    ops, table, logits = cuda.CUDAOps("float32", runtime=HostRuntime()), zeros(7, 4), zeros(3, 4)
    for bad in (-1, 7):
        with pytest.raises(IndexError, match=r"embedding: ids must be in \[0, 7\)"):
            ops.embedding_forward(IDS + bad, table)
    for call in (
        lambda ids: ops.cross_entropy_forward(logits, ids),
        lambda ids: ops.linear_cross_entropy_forward(logits, zeros(4, 4), None, ids),
    ):
        with pytest.raises(IndexError, match=r"targets must be in \[0, 4\)"):
            call(IDS + 4)
    for kind in (np.float32, np.bool_, np.uint64):
        with pytest.raises(TypeError, match="must be integers"):
            ops.embedding_forward(IDS.astype(kind), table)


def test_arrays_of_two_shapes_are_not_added():
    with pytest.raises(ValueError, match="differ"):
        ops_of().add(zeros(3), zeros(4))


# ---- the suite for a GPU ----


class Refusing(HostRuntime):
    """Epilogues by the library alone; where it is not asked for one, the error of a CudaRuntime."""

    def gemm(self, a, b, out, *, compute, apart=None, **extras):
        epilogue = _epilogue(**extras)
        a_t, b_t = (not x.flags.c_contiguous for x in (a, b))
        product = MatmulProblem(*a.shape[:1], *b.shape[1:], *b.shape[:1], a_t, b_t, str(a.dtype), str(out.dtype), compute, epilogue)
        if not product.offered:
            raise DeviceError(f"has no way to compute {product}")
        super().gemm(a, b, out, compute=compute, **extras)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", kernels.UNFUSED)
def test_the_gpu_suite_asks_for_epilogues_that_the_library_has(name, precision):
    """Of an op and precision of that suite some size must work, and of one that it leaves out none can."""
    both = kernels.Both(precision)
    both.ops = [cuda.CUDAOps(precision, runtime=Refusing())] * 2
    function, shapes = kernels.CHECKS[name]
    works = False
    for shape in shapes:
        with contextlib.suppress(DeviceError):
            function(both, **shape)
            works = True
            break
    assert works == ((name, precision) in test_gpu.BY_THE_LIBRARY)


SUITE = """
import os, pytest

@pytest.mark.gpu
@pytest.mark.parametrize("i", range(12))
def test_some(i):
    with open("workers", "a") as file:
        file.write(os.environ.get("PYTEST_XDIST_WORKER", "none") + "\\n")
"""


@pytest.mark.program
@pytest.mark.parametrize("flags", [["-n", "3"], ["-n", "3", "tests/test_gpu.py"]])
def test_the_suite_for_a_gpu_runs_in_one_process(flags, tmp_path):
    """However pytest is called, with the project's own settings, where CuPy is (an empty package is enough here)."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(SUITE)
    (tmp_path / "tests" / "test_other.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    shutil.copy(TESTS / "conftest.py", tmp_path / "tests")
    shutil.copytree(SUPPORT, tmp_path / "tests" / "support")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").touch()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = outside | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 12
    assert len(set(workers)) == 1


def test_all_tests_of_a_gpu_are_in_one_file():
    marked = [path.name for path in Path(__file__).parent.glob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    assert set(marked) == {"test_gpu.py", Path(__file__).name}  # here it is a text
