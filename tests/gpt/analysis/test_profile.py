"""The profile adds up: every op of a step has its row, FLOPs and bytes are the table's, and a profile changes nothing."""

from collections import defaultdict
from itertools import count as count_from

import numpy as np
import pytest

from gpt.analysis.cost import estimate_cost
from gpt.analysis.profile import Row, instrument, measure, profile, timing_observer
from gpt.config import Preset, TrainConfig
from gpt.training import run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import PANGRAMS, config_of
from tensorlite import ReferenceOps, cpu

TRAIN = TrainConfig(batch_size=6, shards=2, gradient_accumulation_steps=3, learning_rate=0.01, min_lr=0.001)


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    p = run_setup.new_run(Preset(config_of("gpt", dropout=0.2), TRAIN, ""), {}, {}, tmp_path, tmp_path / "text", seed=1)
    return lambda backend: Trainer.of(p, Workers(backend, shards=2), np)


@pytest.mark.parametrize("backend", [ReferenceOps, cpu.CPUOps])
def test_rows_add_up(trainer, backend):
    run = trainer(backend)
    rows, n = measure(run)
    assert rows.pop("in all").seconds > 0
    assert n == 3  # of a micro-batch of six in two shards
    model = sum(row.flops for name, row in rows.items() if name not in ("clip_grad_norm_", "adamw_"))
    assert model == estimate_cost(run.model_config, TRAIN).flops / TRAIN.shards
    assert rows["linear_forward"].calls == 3 * (4 * 2 + 1)  # micro-batches x (four a block, and the head)
    assert rows["pack_grads"].bytes == 3 * rows["clip_grad_norm_"].bytes * 2
    for name in ("layernorm_backward", "attention_forward", "cross_entropy_backward", "adamw_"):
        assert rows[name].flops > 0
        assert rows[name].bytes > 0


def test_bytes_are_arguments_and_results_each_once(trainer):
    """linear_forward, three rows: x, w and y of every linear layer, and the biases of most."""
    run = trainer(ReferenceOps)
    rows, n = measure(run)
    c, N = run.model_config, n * run.model_config.block_size
    C, V = c.n_embd, c.vocab_size
    sizes = [(C, 3 * C, 0), (C, C, C), (C, 4 * C, 4 * C), (4 * C, C, C)] * c.n_layer + [(C, V, V)]
    assert rows["linear_forward"].bytes == 3 * 4 * sum(N * i + i * o + b + N * o for i, o, b in sizes)


def test_what_a_backend_does_in_one_piece_is_one_row(trainer):
    """Its FLOPs are those of the primitives it replaces."""

    class Fused(ReferenceOps):
        def mlp_forward(self, *args):
            return ReferenceOps().mlp_forward(*args)

    plain, fused = measure(trainer(ReferenceOps))[0], measure(trainer(Fused))[0]
    assert fused["mlp_forward"].flops > 0
    assert fused["mlp_forward"].flops == plain["gelu_forward"].flops + plain["linear_forward"].flops - fused["linear_forward"].flops
    assert "gelu_forward" not in fused


def test_an_op_is_charged_for_its_own_time_alone():
    """By a clock that ticks once at every look: a primitive takes one tick, a composite what is between those of its parts."""
    rows, ticks = defaultdict(Row), count_from(0)
    watched = instrument(ReferenceOps(), timing_observer(rows, lambda: float(next(ticks))))
    r = np.random.default_rng(0).standard_normal
    watched.mlp_forward(r((2, 3)), r((3, 5)), r(5), r((5, 3)), None)
    assert rows["linear_forward"] == Row(calls=2, seconds=2.0)
    assert rows["gelu_forward"] == Row(calls=1, seconds=1.0)
    assert rows["activation_forward"].seconds == 2.0  # before and after its gelu
    assert rows["mlp_forward"].seconds == 4.0  # before, between and after its three
    assert sum(row.seconds for row in rows.values()) == next(ticks) - 1


def test_a_profile_changes_nothing(trainer):
    run = trainer(cpu.CPUOps)
    before = {name: getattr(run.state, name).copy() for name in ("params", "grads", "m", "v")}
    text = profile(run)
    assert "linear_backward" in text
    assert "GFLOP/s" in text
    assert run.state.step == 0
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(run.state, name), value)
    assert not list(run.out.glob("*.safetensors"))


def test_a_watched_backend_computes_the_same():
    ops = ReferenceOps()
    seen = []
    watched = instrument(ops, lambda name, _, call: (seen.append(name), call())[1])
    r = np.random.default_rng(0).standard_normal
    args = (r((2, 3)), r((3, 5)), r(5), r((5, 3)), None)
    np.testing.assert_array_equal(watched.mlp_forward(*args)[0], ops.mlp_forward(*args)[0])
    assert seen == ["mlp_forward", "linear_forward", "activation_forward", "gelu_forward", "linear_forward"]
