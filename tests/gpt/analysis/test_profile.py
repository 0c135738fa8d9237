"""The profile adds up: every op of a step has a row, with the FLOPs and bytes of the op table, and the run is unchanged."""

from collections import defaultdict
from itertools import count as count_from

import numpy as np
import pytest

from gpt.analysis.cost import estimate_cost
from gpt.analysis.instrument import instrument
from gpt.analysis.profile import OpCost, measure, profile, timing_observer
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
    setup = run_setup.new_run(Preset(config_of("gpt", dropout=0.2), TRAIN, ""), {}, {}, tmp_path, tmp_path / "text", seed=1)
    return lambda backend: Trainer(setup, Workers(backend, shards=2), np)


@pytest.mark.parametrize("backend", [ReferenceOps, cpu.CPUOps])
def test_costs_add_up(trainer, backend):
    run = trainer(backend)
    costs, seconds, batch_rows = measure(run)
    assert 0 < sum(cost.seconds for cost in costs.values()) < 1.5 * seconds  # a sum of medians is not the median of the sums
    assert batch_rows == 3  # of a micro-batch of six in two shards
    model = sum(cost.flops for name, cost in costs.items() if name not in ("clip_grad_norm_", "adamw_"))
    assert model == estimate_cost(run.task.config, TRAIN).flops / TRAIN.shards
    assert costs["linear_forward"].calls == 3 * (4 * 2 + 1)  # micro-batches x (four per block, and the head)
    assert costs["pack_grads"].bytes == 3 * costs["clip_grad_norm_"].bytes * 2
    for name in ("layernorm_backward", "attention_forward", "cross_entropy_backward", "adamw_"):
        assert costs[name].flops > 0
        assert costs[name].bytes > 0


def test_bytes_are_arguments_and_results_each_once(trainer):
    """For linear_forward of three rows: x, w and y of every linear layer, and the biases of most."""
    run = trainer(ReferenceOps)
    costs, _, batch_rows = measure(run)
    c = run.task.config
    N, C, V = batch_rows * c.block_size, c.n_embd, c.vocab_size
    sizes = [(C, 3 * C, 0), (C, C, C), (C, 4 * C, 4 * C), (4 * C, C, C)] * c.n_layer + [(C, V, V)]
    assert costs["linear_forward"].bytes == 3 * 4 * sum(N * i + i * o + b + N * o for i, o, b in sizes)


def test_a_fused_composite_is_one_row(trainer):
    """The FLOPs of a fused op are those of the primitives that it replaces."""

    class Fused(ReferenceOps):
        def mlp_forward(self, *args, **kwargs):
            return ReferenceOps().mlp_forward(*args, **kwargs)

    plain, fused = measure(trainer(ReferenceOps)).ops, measure(trainer(Fused)).ops
    assert fused["mlp_forward"].flops > 0
    assert fused["mlp_forward"].flops == plain["gelu_forward"].flops + plain["linear_forward"].flops - fused["linear_forward"].flops
    assert "gelu_forward" not in fused


def test_an_op_is_charged_for_its_own_time_alone():
    """The clock ticks at every reading: a primitive takes one tick, a composite the ticks between its parts."""
    costs, ticks = defaultdict(OpCost), count_from(0)
    instrumented = instrument(ReferenceOps(), timing_observer(costs, lambda: float(next(ticks))))
    r = np.random.default_rng(0).standard_normal
    instrumented.mlp_forward(r((2, 3)), r((3, 5)), r(5), r((5, 3)), None)
    assert costs["linear_forward"] == OpCost(calls=2, seconds=2.0)
    assert costs["gelu_forward"] == OpCost(calls=1, seconds=1.0)
    assert costs["activation_forward"].seconds == 2.0  # before and after its gelu
    assert costs["mlp_forward"].seconds == 4.0  # before, between and after its three
    assert sum(cost.seconds for cost in costs.values()) == next(ticks) - 1


def test_a_profile_changes_nothing(trainer):
    run = trainer(cpu.CPUOps)
    before = {name: getattr(run.state, name).copy() for name in ("params", "grads", "m", "v")}
    text = profile(run)
    assert "linear_backward" in text
    assert "GFLOP/s" in text
    assert run.state.step == 0
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(run.state, name), value)
    assert not list(run.setup.out.glob("*.safetensors"))
