"""Parity with PyTorch in float64: every op, the whole model, AdamW, clipping and a training run.

Finite differences cannot see a wrong forward; another library can.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from gpt.config import TrainConfig
from gpt.models import gpt
from gpt.params import get
from gpt.training.step import Task, train_step
from small import config_of, start, text
from tensorlite import Key, ReferenceOps
from tensorlite.op_info import OP_INFO
from tensorlite.random import drop_threshold, keep_mask
from tensorlite.reference.optim import adamw_, clip_grad_norm_

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")

from torch.nn import functional  # noqa: E402

import torch_model  # noqa: E402

torch.set_num_threads(1)  # small matrices, and one test process per core

OPS = ReferenceOps()


def assert_same(ours, theirs, what, tolerance=1e-12):
    """Equal to 1e-12 of the largest entry, or of 1 if all are smaller. On x86 we found at most 3e-14."""
    theirs = np.asarray(theirs)
    assert np.shape(ours) == theirs.shape, what
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=what)


# ---- ops ----


def dropout(x, p=0.0, key=None):
    """Dropout with our mask and the arithmetic of PyTorch, because the two generators differ."""
    if key is None:
        return x
    return x * torch.from_numpy(keep_mask(np, key, tuple(x.shape), p)) / (1 - drop_threshold(p) / 65536)


def attention(qkv, n_head, p=0.0, key=None):
    B, T, C3 = qkv.shape
    D = C3 // 3 // n_head
    q, k, v = (a.view(B, T, n_head, D).transpose(1, 2) for a in qkv.chunk(3, dim=-1))  # (B, H, T, D)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    probs = functional.softmax((q @ k.mT / D**0.5).masked_fill(future, -torch.inf), dim=-1)  # (B, H, T, T)
    return (dropout(probs, p, key) @ v).transpose(1, 2).reshape(B, T, C3 // 3)


PEERS = {
    "linear": lambda x, w, b: functional.linear(x, w.T, b),
    "embedding": lambda ids, table: functional.embedding(ids.long(), table),
    "position_embedding": lambda x, wpe, start: x + wpe[start : start + x.shape[-2]],
    "layernorm": lambda x, w, b, eps: functional.layer_norm(x, w.shape, w, b, eps),
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": lambda x: functional.relu(x),
    "softmax": lambda x: functional.softmax(x, dim=-1),
    "attention": attention,
    "dropout": dropout,
    "residual": lambda x, y, p, key: x + dropout(y, p, key),
    "cross_entropy": lambda logits, targets: functional.cross_entropy(logits.flatten(0, -2), targets.flatten()),
}


def check_op(name, inputs):
    """Compare the value, and the gradient of every differentiable input for a random dy."""
    forward, backward = CASES[name].on(OPS)
    y, cache = forward(**inputs)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    grads = backward(dy, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)

    theirs = {k: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for k, a in inputs.items()}
    leaves = {k: theirs[k].requires_grad_() for k in OP_INFO[name].inputs if theirs[k] is not None}
    their_y = PEERS[name](**theirs)
    assert_same(y, their_y.detach(), name)
    their_grads = dict(zip(leaves, torch.autograd.grad(their_y, list(leaves.values()), torch.as_tensor(dy)), strict=True))
    for k, grad in zip(OP_INFO[name].inputs, grads, strict=True):
        if grad is None:
            assert inputs[k] is None
        else:
            assert_same(grad, their_grads[k], f"d{k} of {name}")


def test_every_op_of_the_table_has_a_peer():
    assert set(PEERS) == set(OP_INFO)


@pytest.mark.parametrize("name", PEERS)
@given(data=st.data())
def test_an_op_and_its_gradients(name, data):
    check_op(name, data.draw(CASES[name].inputs))


@pytest.mark.parametrize("n_head", [1, 3])
@pytest.mark.parametrize("key", [None, Key(1, 2)])
def test_attention(n_head, key):
    check_op("attention", {"qkv": np.random.default_rng(0).standard_normal((4, 5, 18)), "n_head": n_head, "p": 0.3, "key": key})


# ---- the model ----


@pytest.mark.parametrize(
    ("activation", "tied", "bias"), list(itertools.product(["gelu", "relu"], [False, True], [False, True])), ids=str
)
def test_the_model_and_every_gradient(activation, tied, bias):
    config = config_of("gpt", activation=activation, tied=tied, bias=bias)
    state = start(config, std=0.5)
    params, (idx, targets) = state.table.tree(state.params), text(config, 4)
    loss, cache = gpt.forward(OPS, params, idx, targets, config)
    grads = gpt.backward(OPS, 1.0, cache)

    theirs = torch_model.GPT(config).double()
    torch_model.load(theirs, params)
    their_loss = theirs(torch.from_numpy(idx), torch.from_numpy(targets))
    their_loss.backward()
    assert_same(loss, their_loss.detach(), "loss")
    assert_same(gpt.logits(OPS, params, idx, config), theirs.logits(torch.from_numpy(idx)).detach(), "logits")
    their_grads = torch_model.gradients(theirs)
    assert set(their_grads) == {p.name for p in state.table}
    for name, grad in their_grads.items():
        assert_same(get(grads, name), grad, name)


# ---- training ----


@pytest.mark.parametrize("max_norm", [0.0, 1.5])
@pytest.mark.parametrize(("n_decay", "weight_decay"), [(0, 0.1), (7, 0.1), (20, 0.1), (7, 0.0)])
def test_adamw_and_clipping(n_decay, weight_decay, max_norm):
    """50 steps of random gradients, some of them above the largest norm."""
    random = np.random.default_rng(0)
    params, m, v = random.standard_normal(20), np.zeros(20), np.zeros(20)
    decayed, rest = (torch.tensor(a, requires_grad=True) for a in (params[:n_decay], params[n_decay:]))
    groups = [{"params": [decayed], "weight_decay": weight_decay}, {"params": [rest], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    sides = set()
    for t in range(1, 51):
        grads = random.standard_normal(20) * random.uniform(0.1, 0.6)
        decayed.grad, rest.grad = torch.tensor(grads[:n_decay]), torch.tensor(grads[n_decay:])
        norm = torch.nn.utils.clip_grad_norm_([decayed, rest], max_norm or np.inf)
        optimizer.step()
        sides.add(float(norm) > max_norm)

        assert_same(clip_grad_norm_(grads, max_norm), norm, "norm")
        adamw_(params, grads, m, v, t=t, lr=0.01, beta1=0.9, beta2=0.95, weight_decay=weight_decay, n_decay=n_decay)
        assert_same(params, torch.cat([decayed, rest]).detach(), f"parameters after step {t}")
    assert len(sides) == (2 if max_norm else 1)


@pytest.mark.parametrize(("variant", "accumulate"), [({}, 1), ({}, 3), ({"activation": "relu", "tied": True, "bias": False}, 1)])
def test_a_training_run(variant, accumulate):
    """50 steps of train_step: losses, gradient norms and parameters agree. PyTorch gets the micro-batches as one batch."""
    config = config_of("gpt", init_std=0.2, **variant)
    train = TrainConfig(
        batch_size=4,
        gradient_accumulation_steps=accumulate,
        max_iters=50,
        learning_rate=1e-2,
        min_lr=1e-3,
        warmup_iters=10,
        weight_decay=0.1,
        beta2=0.99,
        grad_clip=0.8,
    )
    state, data = start(config), np.arange(300) ** 2 % config.vocab_size
    task = Task(gpt, config, train, data, seed=7)
    theirs = torch_model.GPT(config).double()
    torch_model.load(theirs, state.table.tree(state.params))
    optimizer = torch_model.adamw(theirs, train)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 11, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=train.min_lr)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[10])

    losses, their_losses, norms = [], [], []
    for step in range(50):
        key = OPS.fold_in(OPS.step_key(7, step), 0, "batch")
        idx, targets = OPS.get_batch(data, key, train.batch_size * accumulate, config.block_size)
        their_loss = theirs(torch.from_numpy(idx), torch.from_numpy(targets))
        optimizer.zero_grad()
        their_loss.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), train.grad_clip)
        optimizer.step()
        scheduler.step()
        their_losses.append(their_loss.item())

        loss, norm = train_step(OPS, task, state)
        losses.append(float(loss))
        norms.append(float(norm))
        assert_same(norm, their_norm, f"norm of step {step}", 1e-10)
    assert_same(losses, their_losses, "losses", 1e-10)
    params = state.table.tree(state.params)
    for name, value in torch_model.values(theirs).items():
        assert_same(get(params, name), value, f"{name} after the run", 1e-10)
    assert losses[-1] < losses[0] - 0.3  # the model has learned
    assert min(norms) < train.grad_clip < max(norms)  # some steps were clipped, some were not
