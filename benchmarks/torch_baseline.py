"""What the benchmarks race against: the lecture's GPT in PyTorch (tests/torch_model.py), trained and sampled as people do it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from gpt.config import ModelConfig, TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from torch_model import GPT, Block, adamw


def training_step(model: GPT, data: Tensor, config: ModelConfig, train: TrainConfig, compiled: bool) -> Callable[[], float]:
    """A function that makes one update: random windows, loss, backward, clipping, fused AdamW."""
    optimizer = adamw(model, train, fused=True)
    loss_of = torch.compile(model) if compiled else model
    T = config.block_size

    def step() -> float:
        model.train()
        starts = torch.randint(len(data) - T, (train.batch_size,)).tolist()
        idx = torch.stack([data[i : i + T] for i in starts])
        targets = torch.stack([data[i + 1 : i + 1 + T] for i in starts])
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(idx, targets)
        loss.backward()
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()
        return loss.item()

    return step


@torch.inference_mode()
def evaluate(model: Callable[[Tensor, Tensor], Tensor], data: Tensor, config: ModelConfig, rows: int) -> float:
    """The mean loss over consecutive windows."""
    T = config.block_size
    windows = (len(data) - 1) // T
    total = 0.0
    for first in range(0, windows, rows):
        last = min(first + rows, windows)
        idx, targets = data[first * T : last * T].view(-1, T), data[first * T + 1 : last * T + 1].view(-1, T)
        total += model(idx, targets).item() * (last - first)
    return total / windows


def drawn(logits: Tensor) -> Tensor:
    """logits: (1, V) -> (1, 1), one token from their softmax."""
    return torch.multinomial(functional.softmax(logits, dim=-1), 1)


@torch.inference_mode()
def generate(model: GPT, idx: Tensor, n: int, config: ModelConfig) -> Iterator[int]:
    """The usual loop: read the last block_size tokens anew for every token. idx: (1, T)."""
    model.eval()
    for _ in range(n):
        token = drawn(model.logits(idx[:, -config.block_size :])[:, -1])
        idx = torch.cat([idx, token], dim=1)
        yield token.item()


@torch.inference_mode()
def generate_cached(model: GPT, idx: Tensor, n: int, config: ModelConfig) -> Iterator[int]:
    """The same with keys and values kept, for a text that fits the context."""
    if idx.shape[1] + n > config.block_size + 1:
        raise ValueError(f"{idx.shape[1]} + {n} tokens do not fit a context of {config.block_size}")
    model.eval()
    caches: list[list[Tensor]] = [[] for _ in model.blocks]
    done = 0
    for _ in range(n):
        x = model.wte(idx) + model.wpe.weight[done : done + idx.shape[1]]
        for block, cache in zip(model.blocks, caches, strict=True):
            x = x + _attention(block, block.ln1(x), cache)
            x = x + block.mlp(block.ln2(x))
        done += idx.shape[1]
        idx = drawn(model.head(model.lnf(x[:, -1])))
        yield idx.item()


def _attention(block: Block, h: Tensor, cache: list[Tensor]) -> Tensor:
    B, T, C = h.shape
    q, k, v = block.qkv(h).view(B, T, 3, block.n_head, C // block.n_head).permute(2, 0, 3, 1, 4)
    if cache:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    cache[:] = [k, v]
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=T > 1)  # only the prompt has more than one position
    return block.attn_proj(y.transpose(1, 2).reshape(B, T, C))
