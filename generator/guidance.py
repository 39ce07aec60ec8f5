"""Classifier-free guidance: how far the condition is exaggerated.

Shapes: N tokens, C channels.
"""

import torch
from torch import Tensor

from generator.solvers import Velocity

# the scale at a column, from the largest scale and the part of the ramp that is done, in (0, 1]
SCHEDULES = {
    "linear": lambda scale, done: 1.0 + (scale - 1.0) * done,
    "constant": lambda scale, done: scale,
    "none": lambda scale, done: 1.0,
}


def guided(both: Velocity, scale: float) -> Velocity:
    """v = v_u + s·(v_c − v_u) of N tokens, both branches from the same x; `both` gives the velocity
    of 2N tokens, the conditional branch first."""

    def velocity(x: Tensor, t: float) -> Tensor:
        conditional, unconditional = both(x.repeat(2, 1), t).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return velocity
