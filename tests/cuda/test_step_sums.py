"""The sums that wait for the end of a step's backward, and those that one op hands on to the next."""

import dataclasses

import numpy as np
import pytest

from cuda_machines import both, generator
from cuda_op_checks import sums_of_a_step
from cuda_runs import QUICK, TRAIN, Run, every_precision, ops_of
from gpt.training.step import loss_and_gradients
from shim.host import HostRuntime, KernelError
from tensorlite import cuda
from tensorlite.cuda import layernorm, linear, optim, reduce

pytestmark = pytest.mark.usefixtures("compiler")


class Launches(HostRuntime):
    """Notes the kernels, and which GEMMs sum their second operand."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bias_grads = [], 0

    def launch(self, file, kernel, *size, **options):
        self.kernels.append(kernel)
        super().launch(file, kernel, *size, **options)

    def gemm(self, *args, bias_grad=None, **options):
        self.bias_grads += bias_grad is not None
        super().gemm(*args, bias_grad=bias_grad, **options)


def norms(n, C=32):
    """Return layernorm gradients as arguments: n of (dy, cache), and the backend."""
    ops, r = cuda.CUDAOps("float32", runtime=Launches()), generator(n, C)
    x, w, dy = (r.standard_normal(shape).astype(np.float32) for shape in ((n, 9, C), (n, C), (n, 9, C)))  # rows for two blocks
    return ops, [(dy[i], ops.layernorm_forward(x[i], w[i], w[i])[1]) for i in range(n)]


@pytest.mark.parametrize("n", [1, reduce.SUMS, reduce.SUMS + 1])
def test_one_launch_finishes_the_sums_of_many_layers(n):
    """It also does so where nobody packs the gradients: at the end of the step."""
    ops, calls = norms(n)
    alone = [ops.layernorm_backward(*call)[1:] for call in calls]
    assert ops.runtime.kernels.count("finish_sums") == n
    ops.runtime.kernels.clear()
    with ops.step():
        within = [ops.layernorm_backward(*call)[1:] for call in calls]
        assert "finish_sums" not in ops.runtime.kernels
        assert np.isnan(within).all()
    assert ops.runtime.kernels.count("finish_sums") == -(-n // reduce.SUMS)
    np.testing.assert_array_equal(within, alone)


def test_sums_of_several_widths():
    (ops, calls), (_, wide) = norms(2), norms(1, 33)
    alone = [ops.layernorm_backward(*call)[1] for call in calls + wide]
    with ops.step():
        within = [ops.layernorm_backward(*call)[1] for call in calls + wide]
    for a, b in zip(alone, within, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_that_fails_leaves_nothing_to_the_next():
    ops, calls = norms(2)

    def fail():
        with ops.step():
            ops.layernorm_backward(*calls[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ops.step_sums is None
    ops.runtime.kernels.clear()
    with ops.step():
        ops.layernorm_backward(*calls[1])
        assert len(ops.step_sums.pending) == 1
    assert ops.runtime.kernels.count("finish_sums") == 1


@every_precision
def test_a_step_of_the_model_sums_its_biases_once(precision):
    """Its gradients are those of the same ops outside a step, but for the order of the sums that are not layernorm's own."""
    runs = [Run(cuda.CUDAOps(precision, check=False, runtime=Launches()), "gpt", QUICK) for _ in range(2)]
    loss_and_gradients(runs[0].ops, runs[0].task, runs[0].state)
    with runs[1].ops.step():
        loss_and_gradients(runs[1].ops, runs[1].task, runs[1].state)
    layers = runs[0].config.n_layer
    assert [run.ops.runtime.bias_grads for run in runs] == [3 * layers + 1, layers + 1]  # fc's and the head's stay
    assert [run.ops.runtime.kernels.count("finish_sums") for run in runs] == [2 * layers + 1, 1]
    for param, a, b in zip(runs[0].state.table, *(run.state.table.views(run.state.grads) for run in runs), strict=True):
        if param.name.endswith("proj_b"):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
        else:
            np.testing.assert_array_equal(a, b, err_msg=param.name)


def test_a_bias_that_is_not_there_has_no_gradient():
    ops, x, w = ops_of(), np.ones((7, 32), np.float32), np.ones((32, 32), np.float32)
    _, norm = ops.dropout_add_layernorm_forward(x, x, w[0], None)
    _, proj = ops.linear_forward(x, w)
    _, mlp = ops.mlp_forward(x, w, None, w, None)
    with ops.step():
        _, dy, *_ = ops.dropout_add_layernorm_backward((x, x), norm)
        assert ops.linear_backward(dy, proj)[-1] is ops.mlp_backward(dy, mlp)[-1] is None


def test_the_sums_are_of_the_array_itself():
    """Another array of the same values is summed by its own op. Outside a step nothing is handed on, as arrays may be changed."""
    ops, r = cuda.CUDAOps("float32", runtime=Launches()), generator(1)
    x, y, w = (r.standard_normal(shape).astype(np.float32) for shape in ((7, 32), (7, 32), 32))
    _, norm = ops.dropout_add_layernorm_forward(x, y, w, w)
    _, proj = ops.linear_forward(x, np.eye(32, dtype=np.float32), w)

    def bias_grads(same):
        before = ops.runtime.bias_grads
        _, dy, *_ = ops.dropout_add_layernorm_backward((x, y), norm)
        db = ops.linear_backward(dy if same else dy.copy(), proj)[2]
        return ops.runtime.bias_grads - before, db

    assert bias_grads(same=True)[0] == 1
    with ops.step():
        assert bias_grads(same=False)[0] == 1
        assert bias_grads(same=True)[0] == 0


@every_precision
def test_a_step_sums_the_squares_of_its_gradients_as_it_packs_them(precision):
    """Its norm is that of the last micro-batch's sum. The gaps between parameters hold zeros, or they would be missing in it."""
    run = Run(cuda.CUDAOps(precision, check=False, runtime=Launches()), "odd", dataclasses.replace(TRAIN, grad_clip=0.0))
    for _ in range(2):
        _, norm = run.step()
        grads = run.state.grads.astype(np.float64)
        np.testing.assert_allclose(norm, np.sqrt(np.square(grads).sum()), rtol=5 * 2.0**-24)
    assert run.ops.runtime.kernels.count("finish_norm") == 2
    assert "sum_squares" not in run.ops.runtime.kernels
    gaps = np.ones(grads.size, bool)
    for slot in run.state.table.slots.values():
        gaps[slot] = False
    assert gaps.any()
    assert not grads[gaps].any()


def test_squares_are_those_of_the_buffer_itself_and_known_once():
    """Clipping changes the gradients, so a second norm is computed from them. Outside a step, others may have changed them."""
    ops, leaf = cuda.CUDAOps("float32", runtime=Launches()), np.full(100, 0.5, np.float32)
    buffer, other = np.zeros(128, np.float32), np.full(128, 0.25, np.float32)

    def norms(*calls):
        ops.runtime.kernels.clear()
        return [float(call()) for call in calls], ops.runtime.kernels.count("sum_squares")

    def clip():
        return ops.clip_grad_norm_(buffer, 1.0)

    def norm_of(x):
        return lambda: ops.global_norm(x)

    with ops.step():
        ops.pack_grads([leaf], [buffer[:100]])
        found, launched = norms(norm_of(other), norm_of(buffer[:64]), norm_of(buffer), norm_of(buffer))
        np.testing.assert_allclose(found, [128**0.5 / 4, 4, 5, 5], rtol=1e-6)
        assert launched == 3
        ops.pack_grads([leaf], [buffer[:100]])
        found, launched = norms(clip, clip)
        np.testing.assert_allclose(found, [5, 1], rtol=1e-5)
        assert launched == 1
        ops.pack_grads([leaf], [buffer[:100]])
    assert norms(clip)[1] == 1
    for part in (buffer[64:], buffer[:64]):  # the rest of the buffer is larger than a gap, so it may hold anything
        with ops.step():
            ops.pack_grads([part], [part])
            assert norms(norm_of(buffer))[1] == 1


# ---- the tests above, or that of the ops, notice what would be wrong ----


def not_finished(monkeypatch):
    monkeypatch.setattr(optim, "finish_sums", lambda ops: None)


def not_emptied(monkeypatch):
    """The bug: a step begins with what the last one left."""
    kept = reduce.StepSums()
    monkeypatch.setattr(reduce, "StepSums", lambda: kept)


def the_next_slot(monkeypatch):
    launch = reduce._launch_sums

    def shifted(ops, sums):
        outs = [later.out for later in sums]
        launch(ops, [later._replace(out=out) for later, out in zip(sums, outs[1:] + outs[:1], strict=True)])

    monkeypatch.setattr(reduce, "_launch_sums", shifted)


def one_launch_of_all(monkeypatch):
    """The bug: what does not fit in a table is left out."""
    launch = reduce._launch_sums
    monkeypatch.setattr(reduce, "_launch_sums", lambda ops, sums: launch(ops, sums[: reduce.SUMS - 1]))


def the_width_of_the_first(monkeypatch):
    launch = reduce._launch_sums

    def narrow(ops, sums):
        K = sums[0].partial.shape[1]
        launch(ops, [later._replace(partial=later.partial[:, :K]) for later in sums])

    monkeypatch.setattr(reduce, "_launch_sums", narrow)


def sums_of_any_array(monkeypatch):
    monkeypatch.setattr(linear, "known_sums", lambda ops, dy: ops.step_sums and ops.step_sums.column_sums)


def the_sums_of_dw(monkeypatch):
    """The bug: the first row of the partial sums is handed on."""
    backward = layernorm._backward
    monkeypatch.setattr(layernorm, "_backward", lambda *a, **k: (g := backward(*a, **k))._replace(branch_sum=g.dw))


def a_bias_that_is_not_there(monkeypatch):
    gradients = linear.weight_gradients
    monkeypatch.setattr(linear, "weight_gradients", lambda ops, x, dy, _, known=None: gradients(ops, x, dy, True, known))


def the_first_micro_batch_alone(monkeypatch):
    pack = cuda.CUDAOps.pack_grads

    def pack_grads(ops, leaves, slots, add=False):
        squares = ops.step_sums.squares
        pack(ops, leaves, slots, add)
        ops.step_sums.squares = squares or ops.step_sums.squares

    monkeypatch.setattr(cuda.CUDAOps, "pack_grads", pack_grads)


def squares_of_any_buffer(monkeypatch):
    monkeypatch.setattr(reduce, "_fill", lambda *_: True)


def squares_known_twice(monkeypatch):
    known = optim.known_squares

    def known_squares(ops, buffer):
        squares = ops.step_sums and ops.step_sums.squares
        partial = known(ops, buffer)
        if squares is not None:
            ops.step_sums.squares = squares
        return partial

    monkeypatch.setattr(optim, "known_squares", known_squares)


def gaps_of_any_size(monkeypatch):
    monkeypatch.setattr(reduce, "LARGEST_GAP", 2**40)


def squares():
    test_squares_are_those_of_the_buffer_itself_and_known_once()


MISTAKES = [
    (not_finished, lambda: sums_of_a_step(both("float32"))),
    (not_emptied, test_a_step_that_fails_leaves_nothing_to_the_next),
    (the_next_slot, lambda: sums_of_a_step(both("float32"))),
    (one_launch_of_all, lambda: test_one_launch_finishes_the_sums_of_many_layers(reduce.SUMS + 1)),
    (the_width_of_the_first, test_sums_of_several_widths),
    (sums_of_any_array, test_the_sums_are_of_the_array_itself),
    (the_sums_of_dw, lambda: sums_of_a_step(both("float32"))),
    (a_bias_that_is_not_there, test_a_bias_that_is_not_there_has_no_gradient),
    (the_first_micro_batch_alone, lambda: test_a_step_sums_the_squares_of_its_gradients_as_it_packs_them("float32")),
    (squares_of_any_buffer, squares),
    (squares_known_twice, squares),
    (gaps_of_any_size, squares),
]


@pytest.mark.parametrize(("mistake", "check"), MISTAKES)
def test_a_planted_mistake_is_noticed(mistake, check):
    check()
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises((AssertionError, KernelError, ValueError)):
            check()
