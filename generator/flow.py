"""Flow matching on the straight path from data (t = 0) to noise (t = 1), and its solvers.

Shapes: N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
T_MIN = 1e-5


def path(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t·ε + (1 − t)·x_0; x0 and noise [N, C], t [N]."""
    t = t[:, None]
    return t * noise + (1 - t) * x0


def velocity_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Squared error to the path's velocity ε − x_0, one value a token: [N, C] → [N]."""
    return (velocity - (noise - x0)).square().mean(dim=1)


def training_times(uniform: Tensor) -> Tensor:
    """Uniform draws in [0, 1) → times in [1e-5, 1)."""
    return T_MIN + (1 - T_MIN) * uniform


def euler_times(steps: int) -> list[float]:
    """The times at which `euler` asks for a velocity: 1, (steps − 1)/steps, …, 1/steps."""
    return [i / steps for i in range(steps, 0, -1)]


def euler(velocity: Velocity, noise: Tensor, times: Sequence[float]) -> Tensor:
    """From noise at times[0] to data at t = 0: x ← x − (t − t')·v(x, t) over falling times."""
    x = noise
    for t, after in zip(times, [*times[1:], 0.0], strict=True):
        x = x - (t - after) * velocity(x, t)
    return x


def guided(conditional: Tensor, unconditional: Tensor, guidance: Tensor | float) -> Tensor:
    """Classifier-free guidance: v = v_u + s·(v_c − v_u)."""
    return torch.lerp(unconditional, conditional, guidance)
