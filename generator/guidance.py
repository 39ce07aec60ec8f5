"""Classifier-free guidance: how far the condition is exaggerated.

Shapes: N tokens, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from generator.solvers import Velocity

SCHEDULES = ("linear", "constant", "none")


def guided(both: Velocity, scale: float) -> Velocity:
    """v = v_u + s·(v_c − v_u) of N tokens, both branches from the same x; `both` gives the velocity
    of 2N tokens, the conditional branch first."""

    def velocity(x: Tensor, t: float) -> Tensor:
        conditional, unconditional = both(x.repeat(2, 1), t).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return velocity


@dataclass(frozen=True)
class Guidance:
    """Its scale at each column, where 1 is the conditional model alone.

    `linear` grows from 1 to `scale` over `ramp` columns and stays there, `constant` is `scale`
    everywhere, `none` is 1 everywhere.
    """

    scale: float = 1.0
    schedule: str = "linear"
    ramp: int = 16

    @property
    def is_active(self) -> bool:
        """Whether there is an unconditional branch at all."""
        return self.scale != 1.0 and self.schedule != "none"

    def at(self, column: int) -> float:
        """The scale at a column, 0 first."""
        if not self.is_active:
            return 1.0
        if self.schedule == "constant":
            return self.scale
        return 1.0 + (self.scale - 1.0) * min((column + 1) / self.ramp, 1.0)
