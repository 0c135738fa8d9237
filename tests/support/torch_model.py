"""The lecture's GPT in PyTorch, which tests and benchmarks compare with. The library never imports it.

    model = GPT(config).double()             # config: a gpt.config.ModelConfig
    load(model, table.tree(flat))            # the same weights as tensorlite's
    model(idx, targets).backward()
    gradients(model)["blocks.0.qkv_w"]       # NumPy, in tensorlite's names and layout

With dropout it trains as the lecture does, on masks of PyTorch's own; the parity tests leave it out.

Autograd does every backward here, so a mistake of ours cannot be repeated. `nn.Linear` keeps its weight as (out, in), tensorlite
as (in, out): `load`, `values` and `gradients` transpose.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.config import ModelConfig, TrainConfig
from gpt.params import get
from tensorlite import to_numpy


class Block(nn.Module):
    """x = x + attention(layernorm(x));  x = x + mlp(layernorm(x))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.dropout = config.dropout
        self.n_head, self.gelu = config.n_head, config.activation == "gelu"
        self.ln1 = nn.LayerNorm(C, bias=bias)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.attn_proj = nn.Linear(C, C, bias=bias)
        self.ln2 = nn.LayerNorm(C, bias=bias)
        self.fc = nn.Linear(C, 4 * C, bias=bias)
        self.mlp_proj = nn.Linear(4 * C, C, bias=bias)

    def attention(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        p = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # (B, H, T, D)
        return self.attn_proj(y.transpose(1, 2).reshape(B, T, C))

    def mlp(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.mlp_proj(functional.gelu(h, approximate="tanh") if self.gelu else functional.relu(h))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.ln1(x)))
        return x + self.drop(self.mlp(self.ln2(x)))

    def drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class GPT(nn.Module):
    """gpt/models/gpt.py of the same configuration. Its modules are named so that tensorlite's names follow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.model != "gpt":
            raise ValueError("this is the full model, not a stage")
        C, V = config.n_embd, config.vocab_size
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(config.block_size, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.lnf = nn.LayerNorm(C, bias=config.bias)
        self.head = nn.Linear(C, V, bias=config.bias)
        if config.tied:
            self.head.weight = self.wte.weight

    def logits(self, idx: Tensor) -> Tensor:
        """(B, T) token numbers -> (B, T, V)"""
        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]  # (B, T, C) + (T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.lnf(x))

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats."""
        return functional.cross_entropy(self.logits(idx).flatten(0, 1), targets.flatten())


def named(model: GPT) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Each parameter once: tensorlite's name for it, PyTorch's tensor, and whether that is the transpose of ours."""
    for path, parameter in model.named_parameters():  # "wte.weight", "blocks.0.qkv.weight", "lnf.bias"
        module, kind = path.rsplit(".", 1)
        owner = model.get_submodule(module)
        name = module if isinstance(owner, nn.Embedding) else f"{module}_{kind[0]}"
        yield name, parameter, isinstance(owner, nn.Linear) and kind == "weight"


def load(model: GPT, tree: dict[str, Any]) -> None:
    """Copy a tensorlite parameter tree, as ParamTable.tree gives it, into the model, whatever its dtype and device."""
    with torch.no_grad():
        for name, parameter, transposed in named(model):
            w = torch.from_numpy(np.array(to_numpy(get(tree, name))))
            parameter.copy_(w.T if transposed else w)


def values(model: GPT) -> dict[str, np.ndarray]:
    """The parameters by tensorlite's names, in its layout."""
    return {name: _numpy(parameter, transposed) for name, parameter, transposed in named(model)}


def gradients(model: GPT) -> dict[str, np.ndarray]:
    """The gradients by tensorlite's names, in its layout."""
    return {name: _numpy(parameter.grad, transposed) for name, parameter, transposed in named(model)}


def _numpy(tensor: Tensor, transposed: bool) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.T if transposed else tensor).numpy()


def adamw(model: GPT, train: TrainConfig, **options: Any) -> torch.optim.AdamW:
    """AdamW with the two groups of the parameter table: matrices and embeddings decay, biases and gains do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(train.beta1, train.beta2), **options)
