"""Learning-rate schedules of both stages, as functions of the step alone: a resumed run agrees."""

import math
from dataclasses import dataclass

from common.config import setting


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, then a step-wise decay: stage one's `scheduler_config`."""

    warm_up_steps: int = setting(0, "steps from lr_start to lr_max", min=0)
    lr_start: float = setting(0.0, "multiplier of the base rate at step 0", min=0)
    lr_max: float = setting(1.0, "multiplier after the warm-up", min=0)
    lr_min: float = setting(0.0, "multiplier that no decay goes below", min=0)
    interval: int = setting(1, "steps after the warm-up between two decays", min=1)
    decay: float = setting(1.0, "factor of each decay; 1 keeps the rate", min=0)

    def multiplier(self, step: int) -> float:
        """Of the base learning rate, at the update after `step` others."""
        if step < self.warm_up_steps:
            return self.lr_start + (self.lr_max - self.lr_start) * step / self.warm_up_steps
        decays = (step - self.warm_up_steps) // self.interval
        return max(self.lr_min, self.lr_max * self.decay**decays)


@dataclass(frozen=True)
class EpochSchedule:
    """Linear warm-up by fractional epoch, then constant or cosine: stage two's rate."""

    lr: float  # after the warm-up
    epochs: float  # when the cosine ends
    warmup_epochs: float = 0.0
    min_lr: float = 0.0  # where the cosine ends
    kind: str = "constant"  # or cosine

    def rate(self, epoch: float) -> float:
        """The rate after `epoch` epochs, a fraction in the middle of one."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.kind == "constant":
            return self.lr
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
