"""Shards, threads and ranks compute what one worker computes: to the bit where they share a shard count, else to rounding."""

import threading
import time
from functools import cache

import numpy as np
import pytest

from curves import BACKENDS, CONFIG, DATA, STEPS, curve
from gpt.config import TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.training.data_parallel import Workers, split_evenly
from gpt.training.distributed import SingleProcess
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.step import Task, train_step
from paths import SUPPORT
from processes import ended
from small import start
from tensorlite import ReferenceOps, cpu

ROWS = 6  # of one update, whatever it is split into
ROUNDING = 1e-9  # after 100 steps, in float64: they differ by 1e-13 or so, and each step carries on what the last one left


def task_of(train):
    return Task(MODELS["gpt"], CONFIG, train, DATA, seed=3)


@cache
def one_worker():
    """train_step itself, on the reference."""
    train = TrainConfig(batch_size=ROWS, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    state = start(CONFIG)
    losses = [float(train_step(ReferenceOps(), task_of(train), state)[0]) for _ in range(STEPS)]
    return losses, state


def assert_same_curve(losses, params):
    expected, state = one_worker()
    assert expected[0] - expected[-1] > 0.1  # it learns something: the curve is no straight line
    np.testing.assert_allclose(losses, expected, rtol=ROUNDING)
    np.testing.assert_allclose(params, state.params, atol=ROUNDING)


def more(*cases):
    """Further cases of a kind, for `make check-all`."""
    return [pytest.param(*case, marks=pytest.mark.long) for case in cases]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shards", "accumulation"), [(4, 1), (2, 2), (2, 6), *more((1, 1), (2, 1), (6, 1), (1, 2), (3, 3))])
def test_any_split_has_the_same_loss_curve(shards, accumulation, backend):
    """Four shards of six rows are uneven; six shards, and six micro-batches, are single rows."""
    losses, state, _ = curve(min(shards, ROWS // accumulation), ROWS // accumulation, accumulation, backend)
    assert_same_curve(losses, state.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shards", [2, 4])
def test_the_bits_do_not_depend_on_the_threads(shards, backend):
    runs = [curve(shards, ROWS, 1, backend, threads) for threads in (1, 2, 3)]
    for losses, state, val in runs[1:]:
        assert losses == runs[0][0]
        assert val == runs[0][2]
        for name in ("params", "grads", "m", "v"):
            np.testing.assert_array_equal(getattr(state, name), getattr(runs[0][1], name))


def test_one_shard_is_train_step_to_the_bit():
    losses, state, _ = curve(1, ROWS, 1, "reference")
    assert losses == one_worker()[0]
    np.testing.assert_array_equal(state.params, one_worker()[1].params)


def test_shards_of_float32_agree_to_rounding():
    """As users train: in float32, on the fast backend. One gradient, before differences can grow."""
    train = TrainConfig(batch_size=ROWS, grad_clip=1.0)
    grads = []
    for shards in (1, 4):
        state = start(CONFIG, dtype=np.float32)
        Workers(cpu.CPUOps, shards, 2).train_step(task_of(train), state)
        grads.append(state.grads)
        assert state.grads.dtype == np.float32
    np.testing.assert_allclose(*grads, atol=4 * np.finfo(np.float32).eps * np.abs(grads[0]).max())


def test_evaluation_does_not_depend_on_the_workers():
    """The same windows whatever the threads; the same mean to rounding whatever the shards."""
    state = start(CONFIG)
    params = state.table.tree(state.params)
    found = []
    for shards, threads in ((1, 1), (2, 1), (2, 2), (3, 2)):
        workers = Workers(cpu.CPUOps, shards, threads)
        found.append(split_loss(workers, task_of(TrainConfig(batch_size=900)), params, DATA))
        found.append(train_loss(workers, task_of(TrainConfig(batch_size=300, eval_batches=5)), params))
    np.testing.assert_allclose(found[0::2], found[0], rtol=1e-12)
    np.testing.assert_allclose(found[1::2], found[1], rtol=1e-12)
    assert found[2:4] == found[4:6]


def test_an_error_in_a_shard_is_raised_after_the_others_are_done():
    done = []

    def work(_, item):
        if item == 1:
            raise ValueError("shard 1")
        done.append(item)

    workers = Workers(ReferenceOps, 4, 2)
    with pytest.raises(ValueError, match="shard 1"):
        workers.map(work, range(4))
    assert sorted(done) == [0, 2, 3]


def test_map_gives_results_in_order_and_a_backend_one_item_at_a_time():
    workers = Workers(ReferenceOps, 3, 3)
    served = workers.map(lambda ops, item: (ops, item), range(10))
    assert [item for _, item in served] == list(range(10))
    assert [workers.backends.index(ops) for ops, _ in served] == [i % 3 for i in range(10)]


@pytest.mark.parametrize(("n", "parts"), [(6, 2), (7, 3), (2, 5), (0, 2), (10, 1)])
def test_split_evenly_covers_everything_once_and_evenly(n, parts):
    pieces = split_evenly(range(n), parts)
    assert [i for piece in pieces for i in piece] == list(range(n))
    assert len(pieces) == parts
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_more_ranks_than_shards_is_a_clear_error():
    ranks = SingleProcess()
    ranks.size = 3
    with pytest.raises(ConfigError, match="set --shards 3 or more"):
        Workers(ReferenceOps, 2, 1, ranks)


@pytest.mark.parametrize(("shards", "accumulation"), [(5, 1), (3, 2), *more((2, 1), (4, 1), (2, 2))])
def test_two_ranks_have_the_same_loss_curve(shards, accumulation, mpiexec, tmp_path):
    """Real processes; also uneven shards, several on a rank, and with accumulation. Both ranks end with the same bits."""
    done = ended(
        mpiexec(tmp_path, [SUPPORT / "ranks_program.py", tmp_path / "r", shards, ROWS // accumulation, accumulation, "fast"])
    )
    assert done.returncode == 0, done.stderr
    a, b = (np.load(tmp_path / f"r-{rank}.npz") for rank in (0, 1))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert_same_curve(a["losses"], a["params"])
    assert float(a["val"]) == pytest.approx(curve(shards, ROWS // accumulation, accumulation)[2], rel=ROUNDING)


def test_one_worker_computes_with_the_backend_that_it_is_given():
    ops = ReferenceOps()
    workers = Workers.of(ops)
    assert (workers.shards, workers.threads, workers.ranks.size) == (1, 1, 1)
    assert workers.map(lambda own, item: own is ops and item, [3, 4]) == [3, 4]


@pytest.mark.parametrize(("shards", "threads", "rows"), [(1, 1, [6]), (2, 1, [3, 3]), (2, 2, [3, 3]), (4, 3, [1, 2, 1, 2])])
def test_every_shard_computes_its_rows_and_the_step_is_that_of_all(shards, threads, rows):
    class Counting(ReferenceOps):
        rows = 0

        def get_batch(self, data, key, n, block_size):
            self.rows += n
            return super().get_batch(data, key, n, block_size)

    task = task_of(TrainConfig(batch_size=ROWS, learning_rate=0.01, min_lr=0.001, grad_clip=0.5))
    workers, state, twin = Workers(Counting, shards, threads), start(CONFIG), start(CONFIG)
    for step in range(1, 4):
        loss, norm = workers.train_step(task, state)
        expected_loss, expected_norm = train_step(ReferenceOps(), task, twin)
        assert loss == pytest.approx(float(expected_loss), rel=ROUNDING)
        assert norm == pytest.approx(float(expected_norm), rel=ROUNDING)
        np.testing.assert_allclose(state.params, twin.params, atol=ROUNDING)
        assert state.step == step
        assert [ops.rows for ops in workers.backends] == [n * step for n in rows]
        assert (type(norm) is float) == (shards > 1)  # a single shard's is not waited for


def test_one_thread_is_this_one():
    """Also without a word of threads, and whatever the shards."""
    for workers in (Workers(ReferenceOps, 4, 1), Workers(ReferenceOps, 4)):
        assert workers.threads == 1
        used = workers.map(lambda ops, item: time.sleep(0.01) or threading.get_ident(), range(8))
        assert set(used) == {threading.get_ident()}


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_as_many_threads_work_as_are_asked_for(threads):
    """No item is done before all threads have begun one."""
    all_at_work = threading.Barrier(threads)
    Workers(ReferenceOps, threads, threads).map(lambda ops, item: all_at_work.wait(10), range(threads))


def test_a_part_of_a_range_is_split_where_it_is():
    assert split_evenly(range(3, 10), 3) == [range(3, 5), range(5, 7), range(7, 10)]


def test_each_further_shard_has_one_buffer_which_all_steps_use():
    workers, state = Workers(ReferenceOps, 3), start(CONFIG)
    task, seen = task_of(TrainConfig(batch_size=3)), []
    for _ in range(3):
        workers.train_step(task, state)
        seen.append([id(buffer) for buffer in workers._shard_grads])
    assert len(seen[0]) == 2
    assert seen == [seen[0]] * 3
