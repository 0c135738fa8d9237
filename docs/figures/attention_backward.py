"""Draw how the gradient flows back through attention, beside the values of forward.

    python docs/figures/attention_backward.py

The numbers on the arrows are the steps of the derivation in tensorlite/reference/attention.py; a test compares them. A value and
its gradient stand in one row, because they have one shape.
"""

from html import escape
from typing import NamedTuple

import look

PICTURE = "attention-backward.svg"
WIDTH, HEIGHT = 912, 668
RIGHT = 524  # how far a gradient stands to the right of its value
ROWS = (92, 184, 284, 384, 484, 598)  # middles of the rows of boxes
BOX_HEIGHT = 48
FORWARD, BACKWARD, READ = look.BLUE, look.ORANGE, look.FAINT  # colors of the arrows


class Place(NamedTuple):
    """Where a value stands; x: the middle."""

    row: int
    x: int
    width: int
    shape: str


PLACES = {
    "qkv": Place(0, 194, 364, "(B, T, 3C)"),
    "q": Place(1, 70, 116, "(B, H, T, D)"),
    "k": Place(1, 194, 116, "(B, H, T, D)"),
    "v": Place(1, 318, 116, "(B, H, T, D)"),
    "scores": Place(2, 132, 240, "(B, H, T, T)"),
    "probs": Place(3, 132, 240, "(B, H, T, T)"),
    "p_dropped": Place(4, 132, 240, "(B, H, T, T)"),
    "y": Place(5, 194, 364, "(B, T, C)"),
}
VALUES = {  # what a value is computed from
    "qkv": "given, with the heads packed; saved",
    "q": "a view of qkv",
    "k": "a view of qkv",
    "v": "a view of qkv",
    "scores": "q kᵀ / √D, later keys masked",
    "probs": "softmax of each row; saved",
    "p_dropped": "probs times factors",
    "y": "p_dropped v, heads side by side",
}
GRADIENTS = {
    "dy": "given; split into heads first",
    "dp_dropped": "dy vᵀ",
    "dv": "p_droppedᵀ dy",
    "dprobs": "dp_dropped times factors",
    "dscores": "probs (dprobs - Σ dprobs probs)",
    "dq": "dscores k / √D",
    "dk": "dscoresᵀ q / √D",
    "dqkv": "packed as qkv is",
}
SAVED = ("qkv", "probs")
FLOWS = (  # from, to, and the x of the arrow, in forward; the gradient goes the other way
    ("qkv", "q", 70),
    ("qkv", "k", 194),
    ("qkv", "v", 318),
    ("q", "scores", 70),
    ("k", "scores", 194),
    ("scores", "probs", 132),
    ("probs", "p_dropped", 132),
    ("p_dropped", "y", 132),
    ("v", "y", 318),
)
STEPS = {  # of the derivation: the gradient that a step makes, and the y of its number
    ("dp_dropped", 1): 556,
    ("dv", 1): 530,
    ("dprobs", 2): 434,
    ("dscores", 3): 334,
    ("dq", 4): 234,
    ("dk", 4): 248,
}
READS = (  # dashed: the value of forward that a step reads, where its name stands, and the corners of the line
    ("v", (470, 551), ((318, 556), (656, 556))),
    ("p_dropped", (474, 525), ((252, 484), (430, 484), (430, 530), (842, 530))),
    ("factors", (470, 429), ((132, 434), (656, 434))),
    ("probs", (470, 329), ((252, 384), (430, 384), (430, 334), (656, 334))),
    ("k", (470, 229), ((194, 234), (594, 234))),
    ("q", (470, 263), ((70, 248), (718, 248))),
)


def place(name: str) -> Place:
    """Return the place of a value or of its gradient."""
    if name in PLACES:
        return PLACES[name]
    value = PLACES[name.removeprefix("d")]
    return value._replace(x=value.x + RIGHT)


def box(name: str, formula: str) -> list[str]:
    """Return a box with a name, a shape and a formula."""
    at = place(name)
    middle = ROWS[at.row]
    color = BACKWARD if name in GRADIENTS else FORWARD
    fill = "#fff0c2" if name in SAVED else "#fff"
    size = f'x="{at.x - at.width // 2}" y="{middle - BOX_HEIGHT // 2}" width="{at.width}" height="{BOX_HEIGHT}"'
    return [
        f'<rect {size} rx="6" fill="{fill}" stroke="{color}" stroke-width="1.5"/>',
        f'<text x="{at.x}" y="{middle - 5}"><tspan font-weight="bold">{name}</tspan> {at.shape}</text>',
        f'<text x="{at.x}" y="{middle + 14}">{escape(formula)}</text>',
    ]


def arrow(x: int, start: int, end: int, color: str, marker: str) -> list[str]:
    """Return a vertical arrow with a white rim, which parts it from the lines that it crosses."""
    line = f'd="M{x} {start}V{end}" fill="none"'
    return [
        f'<path {line} stroke="#fff" stroke-width="7"/>',
        f'<path {line} stroke="{color}" stroke-width="1.8" marker-end="url(#{marker})"/>',
    ]


def flow(source: str, target: str, x: int) -> list[str]:
    """Return an arrow of forward, downwards, and the arrow of the gradient beside it, upwards."""
    upper = ROWS[place(source).row] + BOX_HEIGHT // 2
    lower = ROWS[place(target).row] - BOX_HEIGHT // 2
    return arrow(x, upper, lower - 7, FORWARD, "forward") + arrow(x + RIGHT, lower, upper + 7, BACKWARD, "backward")


def read(name: str, at: tuple[int, int], corners: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the dashed line along these corners, and its name."""
    points = " ".join(f"{x},{y}" for x, y in corners)
    return [
        f'<polyline points="{points}" fill="none" stroke="{READ}" stroke-width="1.4" stroke-dasharray="5 4"/>',
        f'<text x="{at[0]}" y="{at[1]}" fill="{READ}">{name}</text>',
    ]


def step_number(gradient: str, step: int, y: int) -> list[str]:
    """Return the number of a step in a disk on the arrow to its gradient."""
    x = place(gradient).x
    return [
        f'<circle cx="{x}" cy="{y}" r="11" fill="{BACKWARD}"/>',
        f'<text x="{x}" y="{y + 5}" fill="#fff" font-weight="bold" font-size="14">{step}</text>',
    ]


def marker(name: str, color: str) -> str:
    """Return the definition of an arrowhead."""
    shape = f'<path d="M0 0L8 4L0 8z" fill="{color}"/>'
    size = 'markerWidth="8" markerHeight="8" refX="1" refY="4" orient="auto" markerUnits="userSpaceOnUse"'
    return f'<marker id="{name}" {size}>{shape}</marker>'


def draw() -> str:
    """Return the picture."""
    heads = "".join(marker(name, color) for name, color in (("forward", FORWARD), ("backward", BACKWARD)))
    body = [
        f"<defs>{heads}</defs>",
        '<g font-size="13" text-anchor="middle">',
        f'<text x="194" y="36" font-size="16" font-weight="bold" fill="{FORWARD}">forward, downwards</text>',
        f'<text x="{194 + RIGHT}" y="36" font-size="16" font-weight="bold" fill="{BACKWARD}">backward, upwards</text>',
    ]
    for name, at, corners in READS:
        body += read(name, at, corners)
    for source, target, x in FLOWS:
        body += flow(source, target, x)
    for name, formula in (VALUES | GRADIENTS).items():
        body += box(name, formula)
    for _, _, ((x, y), *_) in READS:
        body.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{READ}"/>')
    for (gradient, step), y in STEPS.items():
        body += step_number(gradient, step, y)
    words = "Numbers: steps of the derivation. Dashed: the values of forward that a step reads."
    body += [f'<text x="{WIDTH // 2}" y="650">{words}</text>', "</g>"]
    return look.page(WIDTH, HEIGHT, "Forward and backward of attention", DESCRIPTION, body)


DESCRIPTION = (
    "Left, downwards: qkv, then q, k and v, scores, probs, p_dropped, y. Right, upwards, each gradient beside its value: dy; by "
    "step 1 dp_dropped and dv; by step 2 dprobs; by step 3 dscores; by step 4 dq and dk; dqkv. Dashed lines: dp_dropped reads v, "
    "dv reads p_dropped, dprobs the dropout factors, dscores probs, dq reads k, dk reads q. qkv and probs are saved."
)


if __name__ == "__main__":
    look.write(PICTURE, draw())
