"""What the benchmarks compare with: the lecture's GPT in PyTorch (tests/support/torch_model.py),
trained and sampled as people do it.

`training_step` is the loop of a CPU, `steps_on_cuda` that of a GPU, plain and at its best.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpt.config import ModelConfig, TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from torch_model import GPT, Block, adamw

CUDA = {  # how a GPU is trained: the mode of torch.compile, and whether the whole step is one graph
    "PyTorch eager": (None, False),
    "torch.compile": ("default", False),
    "torch.compile, CUDA graphs": ("reduce-overhead", False),
    "torch.compile, one graph": ("default", True),
    "torch.compile, tuned, one graph": ("max-autotune-no-cudagraphs", True),
}


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


def steps_on_cuda(model: GPT, data: Tensor, config: ModelConfig, train: TrainConfig, kind: str) -> Callable[[int], float]:
    """A function that makes n updates and returns the last loss, which is all that it waits for.

    The text lies on the device and windows are drawn there; bf16 autocast, SDPA, fused AdamW. kind: one of CUDA. A captured step
    is PyTorch's own recipe: batch, forward, backward and optimizer in one torch.cuda.CUDAGraph, around a compiled model if any.
    The learning rate must be constant.
    """
    mode, one_graph = CUDA[kind]
    device, T, B = data.device, config.block_size, train.batch_size
    optimizer = adamw(model, train, fused=True, capturable=one_graph)
    loss_of = torch.compile(model, mode=mode) if mode else model
    last, offsets = torch.zeros((), device=device), torch.arange(T + 1, device=device)
    begin = torch.compiler.cudagraph_mark_step_begin if mode == "reduce-overhead" else lambda: None
    model.train()

    def step() -> None:
        begin()
        windows = data[torch.randint(len(data) - T, (B, 1), device=device) + offsets]  # (B, T + 1)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last.copy_(loss.detach())

    once = _captured(step) if one_graph else step

    def steps(n: int) -> float:
        for _ in range(n):
            once()
        return last.item()

    return steps


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one graph, after steps that compile it and warm it up on a stream of its own, as PyTorch's notes ask for."""
    step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def attention_seconds(rows: int, heads: int, T: int, D: int, dropout: float) -> dict[str, Any]:
    """Each of SDPA's kernels in bf16, causal: seconds of forward, and of backward; or why it cannot be used here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def heads_of() -> Tensor:  # as they lie in memory after a linear layer
        return torch.randn(rows, T, heads, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()

    q, k, v = (heads_of() for _ in range(3))
    dy = torch.randn_like(q)
    found: dict[str, Any] = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        kept: list[Tensor] = []

        def forward(kept: list[Tensor] = kept) -> None:
            kept[:] = [functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)]

        def backward(kept: list[Tensor] = kept) -> None:
            torch.autograd.grad(kept[0], (q, k, v), dy, retain_graph=True)

        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                found[name] = {"forward": _seconds(forward), "backward": _seconds(backward)}
        except (RuntimeError, AttributeError) as error:  # this card, size or version has none
            found[name] = str(error).partition("\n")[0]
    return found


def _seconds(work: Callable[[], None], calls: int = 20, rounds: int = 5) -> float:
    """Of one call on the device: the copies before keep it busy until the host has launched all of them."""
    big = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    other, times = torch.empty_like(big), []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(60):
            other.copy_(big)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times[1:])


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
    return torch.multinomial(functional.softmax(logits.float(), dim=-1), 1)


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
