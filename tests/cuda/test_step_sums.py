"""The sums that wait for the end of a step's backward, and those that one op hands on to the next."""

import numpy as np
import pytest

from cuda_machines import both, generator
from cuda_op_checks import sums_of_a_step
from cuda_runs import QUICK, Run, every_precision, ops_of
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


MISTAKES = [
    (not_finished, lambda: sums_of_a_step(both("float32"))),
    (not_emptied, test_a_step_that_fails_leaves_nothing_to_the_next),
    (the_next_slot, lambda: sums_of_a_step(both("float32"))),
    (one_launch_of_all, lambda: test_one_launch_finishes_the_sums_of_many_layers(reduce.SUMS + 1)),
    (the_width_of_the_first, test_sums_of_several_widths),
    (sums_of_any_array, test_the_sums_are_of_the_array_itself),
    (the_sums_of_dw, lambda: sums_of_a_step(both("float32"))),
    (a_bias_that_is_not_there, test_a_bias_that_is_not_there_has_no_gradient),
]


@pytest.mark.parametrize(("mistake", "check"), MISTAKES)
def test_a_planted_mistake_is_noticed(mistake, check):
    check()
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises((AssertionError, KernelError, ValueError)):
            check()
