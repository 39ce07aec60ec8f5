"""One update of the weights and of their average; one that is not finite is left out.

Nothing here waits for the device: whether an update was left out is decided there, and read when
the training looks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import load_weights
from common.ema import EMA
from common.errors import UserError
from generator.model import Generator
from generator.settings import TrainingConfig

PATIENCE = 10  # updates left out in a row, after which the training stops


def parameter_groups(model: Generator, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for all but biases, norms, one-dimensional parameters and the head."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name.startswith("head.")
        (free if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


class Updates:
    """AdamW, the clipping before it and the average after it.

    An update whose loss or gradient norm is not finite leaves weights and moments as they are, to
    the bit. After `PATIENCE` of them in a row nothing moves any more, and `check` says so.

    Args:
        model: on the process's device; the same on all processes, and so are its gradients.
        config: see `TrainingConfig`.
    """

    def __init__(self, model: Generator, config: TrainingConfig) -> None:
        self.model = model
        self.ema = EMA(model, config.ema_rate)
        self.largest_norm = config.grad_clip or float("inf")
        self.weight_decay = config.weight_decay
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=0.0, betas=(0.9, 0.95), fused=True
        )
        device = model.unconditional.device
        self.skipped, self.in_a_row = torch.zeros(2, dtype=torch.int64, device=device).unbind()

    def make(self, loss: Tensor, rate: float) -> Tensor:
        """Update with the gradients there are, and remove them.

        Args:
            loss: a number that is the same on all processes.
            rate: learning rate.

        Returns:
            The gradient norm before clipping.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_norm)
        bad = ~(norm.isfinite() & loss.isfinite())
        stopped = self.in_a_row >= PATIENCE
        self.skipped += bad
        self.in_a_row.copy_(torch.where(stopped, self.in_a_row, (self.in_a_row + 1) * bad))
        # the fused optimizer leaves everything as it is where this is not zero
        self.optimizer.found_inf = (bad | stopped).float()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return norm

    def check(self, step: int) -> None:
        """Wait for the device, and see whether the training goes well.

        Raises:
            UserError: too many updates in a row were left out.
        """
        if self.in_a_row >= PATIENCE:
            raise UserError(
                f"training: the loss or its gradient was not finite in {PATIENCE} updates in a "
                f"row, not later than update {step}; the last checkpoint is as it was. Expected "
                "finite tokens and a smaller --blr, or --precision fp32"
            )

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "model_ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": int(self.skipped),
            "skipped_in_a_row": int(self.in_a_row),
        }

    def load(self, state: dict[str, Any], source: object, updates: int) -> None:
        """Take over what `state` gave after so many updates; rates and decay stay as set here."""
        load_weights(self.model, state["model"], source)
        load_weights(self.ema.model, state["model_ema"], source)
        self.ema.updates.fill_(updates)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, decay in zip(self.optimizer.param_groups, (self.weight_decay, 0.0), strict=True):
            group["weight_decay"] = decay
        self.skipped.fill_(state["skipped"])
        self.in_a_row.fill_(state["skipped_in_a_row"])
