"""The baseline of the benchmarks: the lecture's GPT in PyTorch, trained and sampled in the usual ways.

The model is tests/support/torch_model.py. `training_step` is the training loop on a CPU. `steps_on_cuda` is that on a GPU, from
plain PyTorch to its fastest form.
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

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CUDA = {  # ways to train on a GPU: the mode of torch.compile, and whether the whole step is one graph
    "PyTorch eager": (None, False),
    "torch.compile": ("default", False),
    "torch.compile, CUDA graphs": ("reduce-overhead", False),
    "torch.compile, one graph": ("default", True),
    "torch.compile, tuned, one graph": ("max-autotune-no-cudagraphs", True),
}


def training_step(model: GPT, data: Tensor, config: ModelConfig, train: TrainConfig, compiled: bool) -> Callable[[], float]:
    """Return a function that makes one update: random windows, loss, backward, clipping, fused AdamW."""
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


def steps_on_cuda(
    model: GPT, data: Tensor, config: ModelConfig, train: TrainConfig, kind: str, precision: str = "bf16"
) -> Callable[[int], float]:
    """Return a function that makes n updates and returns the last loss. It waits for the device only to read that loss.

    The text is on the device and windows are drawn there. The step uses autocast, SDPA and fused AdamW, and in fp16 PyTorch's own
    GradScaler, whose scale stays on the device too. A captured step follows PyTorch's own recipe: batch, forward, backward and
    optimizer are one torch.cuda.CUDAGraph, and the model in it may be compiled.

    train: its learning rate must be constant.
    kind: a key of CUDA.
    precision: a key of DTYPES.
    """
    mode, one_graph = CUDA[kind]
    device, T, B = data.device, config.block_size, train.batch_size
    optimizer = adamw(model, train, fused=True, capturable=one_graph)
    loss_of = torch.compile(model, mode=mode) if mode else model
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # otherwise it passes all through
    last = torch.zeros((), device=device)
    offsets = torch.arange(T + 1, device=device)
    begin = torch.compiler.cudagraph_mark_step_begin if mode == "reduce-overhead" else lambda: None
    model.train()

    def step() -> None:
        begin()
        windows = data[torch.randint(len(data) - T, (B, 1), device=device) + offsets]  # (B, T + 1)
        with torch.autocast(device.type, DTYPES[precision]):
            loss = loss_of(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        scaler.scale(loss).backward()
        if train.grad_clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        last.copy_(loss.detach())

    once = _captured(step) if one_graph else step

    def steps(n: int) -> float:
        for _ in range(n):
            once()
        return last.item()

    return steps


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the step as one graph. First it is compiled and warmed up on a side stream, as PyTorch's notes recommend."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def attention_seconds(rows: int, heads: int, T: int, D: int, dropout: float, precision: str) -> dict[str, Any]:
    """Return the seconds of forward and backward of each causal SDPA kernel, or why it cannot be used here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def heads_of() -> Tensor:  # as they lie in memory after a linear layer
        return torch.randn(rows, T, heads, D, device="cuda", dtype=DTYPES[precision]).transpose(1, 2).requires_grad_()

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
    """Return the seconds of one call on the device. Copies keep the device busy until the host has launched all calls."""
    big = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    times = []
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
    """Return the mean loss over consecutive windows."""
    T = config.block_size
    windows = (len(data) - 1) // T
    total = 0.0
    for first in range(0, windows, rows):
        last = min(first + rows, windows)
        idx = data[first * T : last * T].view(-1, T)
        targets = data[first * T + 1 : last * T + 1].view(-1, T)
        total += model(idx, targets).item() * (last - first)
    return total / windows


def drawn(logits: Tensor) -> Tensor:
    """Draw a token from the softmax of logits: (1, V) -> (1, 1)."""
    return torch.multinomial(functional.softmax(logits.float(), dim=-1), 1)


@torch.inference_mode()
def generate(model: GPT, idx: Tensor, n: int, config: ModelConfig) -> Iterator[int]:
    """Yield n tokens with the usual loop, which reads the last block_size tokens for every token. idx: (1, T)."""
    model.eval()
    for _ in range(n):
        token = drawn(model.logits(idx[:, -config.block_size :])[:, -1])
        idx = torch.cat([idx, token], dim=1)
        yield token.item()


@torch.inference_mode()
def generate_cached(model: GPT, idx: Tensor, n: int, config: ModelConfig) -> Iterator[int]:
    """Yield the same tokens with cached keys and values, for a text that fits the context."""
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
