"""Training of the tokenizer: two optimizers by hand, EMA, validation with EMA weights.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from common import config as configuration
from common import distributed, images, seeding
from common.ema import EMA
from common.metrics import psnr
from tokenizer.config import parse
from tokenizer.model import Tokenizer
from tokenizer.objective import Loss, Objective
from tokenizer.schedule import Schedule


class TokenizerModule(LightningModule):
    """A tokenizer, its EMA copy and its objective.

    The number of autoencoder updates so far, `step`, decides the learning rate, the thresholds of
    the objective and the random draws; Lightning's own counter counts both optimizers.

    Args:
        ddconfig, sematicconfig, embed_dim, post_channels, std: sizes, see `Tokenizer`.
        lossconfig: target and params of the objective.
        learning_rate: base rate of both Adams.
        scheduler_config: multiplier of the autoencoder's rate, see `Schedule`.
        ema_decay: of the EMA copy, after its warm-up.
        grad_clip: largest gradient norm of either update; 0 turns clipping off.
        seed: of the posterior's draws.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Mapping[str, Any],
        std: float = 2.5,
        sematicconfig: Mapping[str, Any] | None = None,
        post_channels: int | None = None,
        learning_rate: float = 1.92e-4,
        scheduler_config: Mapping[str, Any] | None = None,
        ema_decay: float = 0.9999,
        grad_clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sizes = {
            "ddconfig": ddconfig,
            "embed_dim": embed_dim,
            "std": std,
            "sematicconfig": sematicconfig,
            "post_channels": post_channels,
        }
        self.tokenizer = Tokenizer(**self.sizes)
        self.ema = EMA(self.tokenizer, ema_decay, warmup=True)
        self.objective: Objective = configuration.instantiate(lossconfig, "lossconfig")
        self.schedule = parse(Schedule, scheduler_config or {}, "scheduler_config")
        self.learning_rate = learning_rate
        self.grad_clip = grad_clip
        self.seed = seed

    @property
    def step(self) -> int:
        """Updates of the autoencoder so far."""
        return self._step

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups = [self.tokenizer]
        if self.objective.discriminator is not None:
            groups.append(self.objective.discriminator)
        return [
            torch.optim.Adam(m.parameters(), lr=self.learning_rate, betas=(0.5, 0.9))
            for m in groups
        ]

    def on_fit_start(self) -> None:
        self._step = int(self.ema.updates)
        distributed.broadcast(self)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        real = images.to_float(batch[0])  # [B, 3, H, W]
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        rate = self.learning_rate * self.schedule.multiplier(self.step)
        for group in optimizers[0].param_groups:
            group["lr"] = rate

        draws = seeding.generator(
            self.seed, "posterior", self.step, self.global_rank, device=self.device
        )
        posterior = self.tokenizer.encode(real)
        fake = self.tokenizer.decode(posterior.sample(draws))  # [B, 3, H, W]
        loss = self.objective.autoencoder_loss(
            real, fake, posterior, self.tokenizer.decoder.conv_out.weight, self.step
        )
        norm = self._update(optimizers[0], loss, self.tokenizer)
        self.ema.update(self.tokenizer)
        logs = {"lr": rate, "grad_norm": norm, **loss.terms}
        if self.objective.adversarial(self.step):
            loss = self.objective.discriminator_loss(real, fake)
            norm = self._update(optimizers[1], loss, self.objective.discriminator)
            logs |= {"disc_grad_norm": norm, **loss.terms}
        self._step += 1
        self.log_dict({f"train/{k}": v for k, v in logs.items()}, batch_size=len(real))
        self.log("rec", loss_per_pixel(logs["rec"], real), prog_bar=True, logger=False)

    def _update(self, optimizer: Any, loss: Loss, module: nn.Module) -> Tensor:
        """One optimizer step; the gradient norm before clipping."""
        optimizer.zero_grad()
        self.manual_backward(loss.total)
        parameters = [p for p in module.parameters() if p.grad is not None]
        distributed.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_clip or float("inf"))
        optimizer.step()
        return norm

    def on_validation_epoch_start(self) -> None:
        self._token_moments = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """PSNR with EMA weights, and the moments of the sampled tokens."""
        real = images.to_float(batch[0])
        posterior = self.ema.model.encode(real)
        fake = self.ema.model.decode(posterior.mode())
        self.log(
            "val/psnr", psnr(real, fake).mean(), batch_size=len(real), sync_dist=True, prog_bar=True
        )
        draws = seeding.generator(self.seed, "scale", index, self.global_rank, device=self.device)
        tokens = posterior.sample(draws).double()
        moments = [torch.tensor(tokens.numel()), tokens.sum(), tokens.square().sum()]
        self._token_moments += torch.stack([m.double().cpu() for m in moments])

    def on_validation_epoch_end(self) -> None:
        """The tokens' scale, 1/std, which the checkpoint carries to stage two."""
        count, first, second = distributed.total(self._token_moments.to(self.device)).tolist()
        std = (second / count - (first / count) ** 2) ** 0.5
        for tokenizer in (self.tokenizer, self.ema.model):
            tokenizer.token_scale.fill_(1 / std)
        self.log("val/token_scale", 1 / std)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokenizer"] = self.sizes


def loss_per_pixel(reconstruction: Tensor, batch: Tensor) -> Tensor:
    """A loss summed over an image as a mean over its values, which is easier to read."""
    return reconstruction / batch[0].numel()
