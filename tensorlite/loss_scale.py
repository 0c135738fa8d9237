"""class LossScale: the factor by which a float16 run multiplies its loss before backward, and its rule.

Small gradients are zero in float16, whose smallest number is 6e-8. Backward is linear in dloss, so with the loss multiplied by a
power of two, every gradient is multiplied by it too, and division by it is exact. If the factor is too large, a gradient
overflows. Its update is then skipped and the factor halved (Micikevicius et al. 2018, arXiv:1710.03740).
"""

import math
from dataclasses import dataclass, replace

FIRST_SCALE = 2.0**16
MAX_SCALE = 2.0**24
GROWTH_INTERVAL = 2000  # steps without an overflow, after which the scale doubles


@dataclass(frozen=True)
class LossScale:
    """The loss scale before a step, with what its rule needs to know of the steps before.

    scale: a power of two.
    finite_steps: how many steps in a row had a finite gradient since the scale last changed.
    skipped_steps: how many updates the run has skipped.
    """

    scale: float = FIRST_SCALE
    finite_steps: int = 0
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        """Check the fields, which may come from a file. Raises ValueError."""
        if not (type(self.scale) is float and 1.0 <= self.scale <= 2.0**126 and math.frexp(self.scale)[0] == 0.5):
            raise ValueError("the loss scale must be a power of two from 1 to 2^126")
        for steps in (self.finite_steps, self.skipped_steps):
            if type(steps) is not int or not 0 <= steps < 2**24:  # the device counts in float32
                raise ValueError("the steps of a loss scale must be whole numbers in [0, 2^24)")

    def after(self, norm: float) -> "LossScale":
        """Return the loss scale after a step whose gradient has this norm, by the rule of `update_loss_scale` in optim.cu."""
        if not math.isfinite(norm):
            return LossScale(max(1.0, self.scale / 2), skipped_steps=self.skipped_steps + 1)
        if self.finite_steps + 1 == GROWTH_INTERVAL:
            return LossScale(min(MAX_SCALE, self.scale * 2), skipped_steps=self.skipped_steps)
        return replace(self, finite_steps=self.finite_steps + 1)
