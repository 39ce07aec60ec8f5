"""Flow matching on the straight path from data (t = 0) to noise (t = 1).

Shapes: N tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor

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
