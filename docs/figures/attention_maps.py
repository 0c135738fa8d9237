"""Draw the attention maps of all heads of a trained model on one line of text.

    python docs/figures/attention_maps.py

The model is the preset laptop, in runs/figures/laptop. It is trained first where it is missing: about a minute on two cores.
"""

import subprocess
import sys
from html import escape

import look
import numpy as np

from gpt.models import MODELS
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint
from tensorlite import ReferenceOps

PICTURE = "attention-maps.svg"
TEXT = "to be or not to be"
RUN = look.ROOT / "runs" / "figures" / "laptop"

CELL = 10  # pixels
SHADES = 20  # a weight is drawn in the nearest of these
LIGHT, DARK = (232, 239, 246), (3, 41, 94)  # of the weights 0 and 1
LEFT, TOP = 28, 84  # where the cells of the first map begin
GAP_X, GAP_Y = 26, 46  # between maps: room for characters, and for a heading


class WatchedOps(ReferenceOps):
    """The reference ops, which keep the weights of each layer's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[np.ndarray] = []

    def attention_forward(self, *args, **options):
        """Compute attention as always."""
        y, cache = super().attention_forward(*args, **options)
        _, _, probs, _ = cache
        self.maps.append(probs[0])  # (H, T, T), of the only row
        return y, cache


def attention_maps(text: str) -> np.ndarray:
    """Return the weights of the trained model: (L, H, T, T). Row t holds the weights of the characters that character t reads."""
    best = RUN / "best.safetensors"
    if not best.exists():
        flags = f"--preset laptop --shards 2 --seed 1337 --device cpu --out {RUN}"
        subprocess.run([sys.executable, "train.py", *flags.split()], check=True, cwd=look.ROOT)
    saved = checkpoint.load(best)
    tokens = CharTokenizer(saved.vocabulary).encode(text)[None]  # (1, T)
    ops = WatchedOps()
    MODELS[saved.model.model].forward(ops, saved.table.tree(saved.params), tokens, tokens, saved.model)
    return np.stack(ops.maps)


def color(shade: int) -> str:
    """Return the color of a weight of shade / SHADES."""
    part = shade / SHADES
    return "#" + "".join(f"{round(light + (dark - light) * part):02x}" for light, dark in zip(LIGHT, DARK, strict=True))


def cells(weights: np.ndarray) -> list[str]:
    """Return the cells of one map, in units of a cell: one path per shade, and the outline. weights: (T, T)."""
    shades = np.rint(weights * SHADES).astype(int)
    stairs = "M0 0" + "h1v1" * len(weights) + "H0z"
    lines = [f'<path d="{stairs}" fill="{color(0)}"/>']
    for shade in range(1, SHADES + 1):
        squares = "".join(f"M{s} {t}h1v1h-1z" for t, s in np.argwhere(shades == shade))
        if squares:
            lines.append(f'<path d="{squares}" fill="{color(shade)}"/>')
    return [*lines, f'<path d="{stairs}" fill="none" stroke="{look.FAINT}" stroke-width="0.1"/>']


def one_map(weights: np.ndarray, text: str, heading: str, x: int, y: int) -> list[str]:
    """Return one map with its heading and the characters along its sides. x, y: its upper left cell."""
    middles = " ".join(str(i * CELL + CELL // 2) for i in range(len(text)))
    baselines = " ".join(str(i * CELL + CELL - 2) for i in range(len(text)))
    first = " ".join(["-8"] * len(text))
    shown = escape(text.replace(" ", "·"))
    return [
        f'<g transform="translate({x} {y})">',
        f'<text y="-20">{heading}</text>',
        f'<g transform="scale({CELL})">',
        *cells(weights),
        "</g>",
        f'<g font-family="{look.MONO}" font-size="10" text-anchor="middle">',
        f'<text x="{middles}" y="-4">{shown}</text>',
        f'<text x="{first}" y="{baselines}">{shown}</text>',
        "</g>",
        "</g>",
    ]


def scale(x: int, y: int) -> list[str]:
    """Return the colors of the weights from 0 to 1."""
    squares = [f'<rect x="{x + 8 * i}" y="{y}" width="8" height="12" fill="{color(i)}"/>' for i in range(SHADES + 1)]
    end = x + 8 * (SHADES + 1)
    return [
        f'<text x="{x - 6}" y="{y + 10}" text-anchor="end">weight 0</text>',
        *squares,
        f'<text x="{end + 6}" y="{y + 10}">1</text>',
    ]


def draw(maps: np.ndarray, text: str) -> str:
    """Return the picture: one row of maps per layer. maps: (L, H, T, T)."""
    L, H, T, _ = maps.shape
    side = T * CELL
    width = LEFT + H * side + (H - 1) * GAP_X + 16
    height = TOP + L * side + (L - 1) * GAP_Y + 16
    words = "Each row: a character and the weights with which it reads itself and those before it (· is a space)."
    body = [f'<text x="16" y="26">{words}</text>', *scale(width - 210, 34)]
    for layer in range(L):
        for head in range(H):
            x = LEFT + head * (side + GAP_X)
            y = TOP + layer * (side + GAP_Y)
            body += one_map(maps[layer, head], text, f"layer {layer + 1}, head {head + 1}", x, y)
    description = (
        f"Lower triangles of shaded squares, {L} layers of {H} heads, with the characters of '{text}' along both sides. "
        "Everything above the diagonal is empty: the mask."
    )
    return look.page(width, height, "Attention maps of the laptop model", description, body)


if __name__ == "__main__":
    look.write(PICTURE, draw(attention_maps(TEXT), TEXT))
