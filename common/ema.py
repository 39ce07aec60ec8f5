"""An exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class EMA(nn.Module):
    """A frozen copy of a model that follows it: `average ← d·average + (1 - d)·weights`.

    Buffers are copied, not averaged. With `warmup` the n-th update (1 first) has `d = min(decay,
    (1 + n) / (10 + n))`, so that the random initial weights are soon forgotten.
    """

    updates: torch.Tensor

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        super().__init__()
        self.decay, self.warmup = decay, warmup
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None  # `updates` where reading it waits for no device
        self.register_load_state_dict_post_hook(lambda ema, _: setattr(ema, "_count", None))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights that `model` has now."""
        self._count = n = (int(self.updates) if self._count is None else self._count) + 1
        self.updates += 1
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)

    def train(self, mode: bool = True) -> "EMA":
        """Do nothing: a trainer that calls `train()` on everything leaves the copy as it is."""
        return self
