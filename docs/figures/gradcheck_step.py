"""Draw the error of a numerical gradient of layernorm against the size of its step.

    python docs/figures/gradcheck_step.py

The truth is the hand-derived backward in NumPy's longdouble. The error is the root mean square over the entries of dx, divided by
that of dx. Where only rounding is left, the errors differ a little from processor to processor.
"""

import look
import numpy as np
from matplotlib.figure import Figure

from tensorlite.reference.layernorm import layernorm_backward, layernorm_forward

PICTURE = "gradcheck-step.svg"
SHAPE = (4, 8)  # of x: (N, C)
EXPONENTS = np.arange(-20, 0.1, 1 / 3)
SHORTEST = -16.1  # exponent of the shortest real step: a shorter one leaves most entries of x as they are
CENTRAL = {  # weights of phi(x + n h) - phi(x - n h) by n, for central differences of 2, 4 and 6 values
    2: {1: 1 / 2},
    4: {1: 2 / 3, 2: -1 / 12},
    6: {1: 3 / 4, 2: -3 / 20, 3: 1 / 60},
}
COLORS = {2: look.ORANGE, 4: look.GREEN, 6: look.BLUE}

Curve = list[tuple[float, float]]  # steps and errors


def errors() -> dict[str, Curve]:
    """Return the curve of each method."""
    normal = np.random.default_rng(0).standard_normal
    x, dy = normal(SHAPE), normal(SHAPE)
    w, b = normal(SHAPE[-1]), normal(SHAPE[-1])

    nudges = np.eye(x.size).reshape(-1, *SHAPE)  # (N C, N, C), one entry of x each

    def phi(x: np.ndarray) -> np.ndarray:
        y, _ = layernorm_forward(x, w, b)
        return (dy * y).sum(axis=(-2, -1))  # (N C,), one value per nudge

    def central(h: float, weights: dict[int, float]) -> np.ndarray:
        return sum(c * (phi(x + n * h * nudges) - phi(x - n * h * nudges)) for n, c in weights.items()) / h

    def complex_step(h: float) -> np.ndarray:
        return phi(x + 1j * h * nudges).imag / h

    _, cache = layernorm_forward(x.astype(np.longdouble), w.astype(np.longdouble), b.astype(np.longdouble))
    true, _, _ = layernorm_backward(dy.astype(np.longdouble), cache)

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(((found - true.ravel()) ** 2).mean() / (true**2).mean()))

    steps = 10.0**EXPONENTS
    real_steps = steps[EXPONENTS > SHORTEST]
    curves = {f"central-{n}": [(h, error(central(h, weights))) for h in real_steps] for n, weights in CENTRAL.items()}
    return curves | {"complex": [(h, error(complex_step(h))) for h in steps]}


def power(k: int) -> str:
    """Return 10 to the power k as the course writes it."""
    return "1" if k == 0 else f"1e{k}"


def draw(curves: dict[str, Curve]) -> str:
    """Return the picture."""
    with look.style():
        figure = Figure(figsize=(7.2, 4.5))
        axes = figure.add_axes((0.1, 0.11, 0.885, 0.86))
        axes.set(xlim=(-20, 1.1), ylim=(-17, 1.5), xlabel="step h", ylabel="relative error of the gradient")
        axes.set_xticks(range(-20, 1, 2), map(power, range(-20, 1, 2)))
        axes.set_yticks(range(-16, 1, 2), map(power, range(-16, 1, 2)))
        axes.grid(color=look.RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        h, error = np.log10(curves["complex"]).T
        axes.plot(h, error, color="0.72", linewidth=5, solid_capstyle="round", gid="complex")
        for n, color in COLORS.items():
            h, error = np.log10(curves[f"central-{n}"]).T
            axes.plot(h, error, color=color, linewidth=1.7, gid=f"central-{n}")

        axes.text(-13.3, -0.6, "rounding", fontweight="bold", fontsize=11)
        axes.text(-13.3, -1.5, "nearly equal values are subtracted: 1e-16 / h")
        axes.text(-1.9, -3.6, "truncation", fontweight="bold", fontsize=11, ha="right")
        axes.text(-1.9, -4.5, "the formula leaves out terms", ha="right")
        axes.text(-19.7, -15.0, "complex step: nothing is subtracted, so no step is too short")
        axes.text(-3.7, -7.6, "2 values: h\u00b2", color=COLORS[2], ha="right", fontweight="bold")
        axes.text(-3.3, -13.4, "4 values: h\u2074", color=COLORS[4], ha="center", fontweight="bold")
        axes.plot((-3.05, -3.2), (-12.15, -12.9), color=COLORS[4], linewidth=0.8)
        axes.text(-1.9, -12.4, "6 values: h\u2076", color=COLORS[6], fontweight="bold")
        return look.svg(figure, "Error of a numerical gradient against its step", DESCRIPTION)


DESCRIPTION = (
    "Log-log plot. The error of central differences falls with the step, as h to the power 2, 4 or 6, down to 5e-11, 6e-13 and "
    "3e-13, and rises as 1e-16 / h for shorter steps. The error of the complex step falls with h squared to 1e-16 and stays there."
)


if __name__ == "__main__":
    look.write(PICTURE, draw(errors()))
