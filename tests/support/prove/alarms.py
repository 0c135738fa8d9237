"""No right gradient is refused: gradcheck passes right layers at drawn shapes and values.

Case n takes a layer of tests/support/layers.py, which has the ops of the library and layers as people write them, and draws its
inputs from its shape specification. A verdict of "fail" ends the proof. At a kink or a jump within reach of the shortest
differences the verdict may be "inconclusive", and these cases are counted. Every fourth round of all layers is checked entry by
entry up to 256 entries, as gradcheck does by default, and the others along random directions above 4 entries.
"""

from functools import cache

from layers import LAYERS, OPS
from prove.harness import draw, main
from tensorlite import gradcheck
from tensorlite.testing.shapes import Specification, parse

RIGHT = (*OPS, *LAYERS)
specification = cache(parse)


def case(n: int) -> str:
    layer = RIGHT[n % len(RIGHT)]
    drawn: Specification = specification(layer.specification)
    example = drawn.example(draw("alarms", n).randint)
    elementwise = 256 if n // len(RIGHT) % 4 == 0 else 4
    report = gradcheck(layer.forward, layer.backward, example.inputs(), elementwise=elementwise, raise_on_fail=False)
    assert report.status != "fail", f"{layer.name} at {example}\n{report}\n{example.code()}"
    return report.status if report.ok else f"{report.status}: {layer.name}"


if __name__ == "__main__":
    main(case, 20_000, chunk=50)
