"""ODE solvers: a flow followed from noise (t = 1) to data (t = 0), over any velocity v(x, t).

Guidance makes one velocity of those of both its branches. `times` are the ends of the steps, n + 1
falling numbers from 1 to 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
SECOND_ORDER_POWER = 1.5  # the best of those measured: docs/results/solvers.json


def guided(both: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v = v_u + s·(v_c − v_u) of N tokens, both branches from the same x;
    `both` gives the velocity of 2N tokens, the conditional branch first."""

    def velocity(x: Tensor, t: float) -> Tensor:
        conditional, unconditional = both(x.repeat(2, 1), t).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return velocity


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """First order, one velocity a step."""
    for t, after in pairwise(times):
        x = x - (t - after) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Second order, two velocities a step: the mean of those at both of its ends."""
    for t, after in pairwise(times):
        first = velocity(x, t)
        second = velocity(x - (t - after) * first, after)
        x = x - (t - after) / 2 * (first + second)
    return x


def adams_bashforth(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Second order, one velocity a step, extrapolated from the last two over steps of any length;
    the first step is Euler's, whose error of second order is made once."""
    before = length_before = None
    for t, after in pairwise(times):
        length = t - after
        now = mean = velocity(x, t)
        if before is not None:
            mean = now + length / (2 * length_before) * (now - before)
        x = x - length * mean
        before, length_before = now, length
    return x


METHODS = {"euler": euler, "heun": heun, "ab2": adams_bashforth}


@dataclass(frozen=True)
class Solver:
    """How the flow of a column is followed; the default is that of the released code."""

    method: str = "euler"
    steps: int = 100

    @property
    def times(self) -> list[float]:
        """Ends of the steps; a power above 1 takes shorter ones towards the data."""
        power = 1.0 if self.method == "euler" else SECOND_ORDER_POWER
        return [(i / self.steps) ** power for i in range(self.steps, -1, -1)]

    @property
    def asked(self) -> list[float]:
        """The distinct times at which velocities are asked for, in their order."""
        return self.times if self.method == "heun" else self.times[:-1]

    def solve(self, velocity: Velocity, noise: Tensor) -> Tensor:
        """From noise at t = 1 to data at t = 0."""
        return METHODS[self.method](velocity, noise, self.times)
