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
from common.checkpoint import load_weights
from common.ema import EMA
from common.errors import UserError
from common.metrics import psnr
from tokenizer.config import parse
from tokenizer.model import Tokenizer
from tokenizer.objective import Loss, Objective
from tokenizer.posterior import Posterior
from tokenizer.schedule import Schedule

SCALE_IMAGES = 256  # enough for the tokens' scale where there is no validation set


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
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay: found {ema_decay}, expected a number in [0, 1)")
        if embed_dim < 1:
            raise UserError(f"embed_dim: found {embed_dim}, expected 1 or more")
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
        modules = [self.tokenizer]
        if self.objective.discriminator is not None:
            modules.append(self.objective.discriminator)
        return [
            torch.optim.Adam(m.parameters(), lr=self.learning_rate, betas=(0.5, 0.9), fused=True)
            for m in modules
        ]

    def on_fit_start(self) -> None:
        self._step = int(self.ema.updates)
        self._scale_step = -1
        distributed.broadcast(self)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        real = images.to_float(batch[0])  # [B, 3, H, W]
        rate = self.learning_rate * self.schedule.multiplier(self.step)
        autoencoder, discriminator = self._optimizers(rate)

        draws = seeding.generator(
            self.seed, "posterior", self.step, self.global_rank, device=self.device
        )
        posterior = self.tokenizer.encode(real)
        fake = self.tokenizer.decode(posterior.sample(draws))  # [B, 3, H, W]
        loss = self.objective.autoencoder_loss(
            real, fake, posterior, self.tokenizer.decoder.conv_out.weight, self.step
        )
        norm = self._update(autoencoder, loss, self.tokenizer)
        self.ema.update(self.tokenizer)
        logs = {"grad_norm": norm, **loss.terms}
        if self.objective.adversarial(self.step):
            loss = self.objective.discriminator_loss(real, fake)
            norm = self._update(discriminator, loss, self.objective.discriminator)
            logs |= {"disc_grad_norm": norm, **loss.terms}
        self._step += 1
        means = distributed.mean(torch.stack([v.float() for v in logs.values()]))
        logs = dict(zip(logs, means, strict=True))
        self.log_dict({"train/lr": rate, **{f"train/{k}": v for k, v in logs.items()}})
        self.log("rec", loss_per_pixel(logs["rec"], real), prog_bar=True, logger=False)

    def _optimizers(self, rate: float) -> tuple[Any, torch.optim.Optimizer | None]:
        """Both optimizers, the autoencoder's at `rate`, the discriminator's at the base rate.

        The discriminator's comes without Lightning's wrapper, which would count its updates too.
        """
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer, value in zip(optimizers, (rate, self.learning_rate), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = value
        return optimizers[0], optimizers[1].optimizer if len(optimizers) > 1 else None

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
        self._fidelity = torch.zeros(2, dtype=torch.float64)  # images, sum of their PSNR

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """PSNR with EMA weights, and the moments of the sampled tokens."""
        real = images.to_float(batch[0])
        posterior = self.ema.model.encode(real)
        fake = self.ema.model.decode(posterior.mode())
        self._fidelity += torch.tensor([len(real), psnr(real, fake).sum().item()])
        self._add_moments(posterior, index)

    def on_validation_epoch_end(self) -> None:
        # Lightning's own mean over processes is wrong where one has more images than another
        count, psnrs = distributed.total(self._fidelity.to(self.device)).tolist()
        self.log("val/psnr", psnrs / count, prog_bar=True, sync_dist=True)
        if not self.trainer.sanity_checking:
            self._set_token_scale()

    def on_train_epoch_end(self) -> None:
        """Measure the tokens' scale on training images where this epoch had no validation."""
        if self._scale_step == self.step:
            return
        data = self.trainer.datamodule
        dataset = data.datasets["train"]
        mine = range(self.global_rank, min(SCALE_IMAGES, len(dataset)), self.trainer.world_size)
        self._token_moments = torch.zeros(3, dtype=torch.float64)
        with torch.no_grad():
            for start in range(0, len(mine), data.batch_size):
                batch = torch.stack([dataset[i][0] for i in mine[start : start + data.batch_size]])
                real = images.to_float(batch.to(self.device))
                self._add_moments(self.ema.model.encode(real), start)
        self._set_token_scale()

    def _add_moments(self, posterior: Posterior, index: int) -> None:
        draws = seeding.generator(self.seed, "scale", index, self.global_rank, device=self.device)
        tokens = posterior.sample(draws).double()
        moments = [torch.tensor(tokens.numel()), tokens.sum(), tokens.square().sum()]
        self._token_moments += torch.stack([m.double().cpu() for m in moments])

    def _set_token_scale(self) -> None:
        """The tokens' scale, 1/std, which the checkpoint carries to stage two."""
        count, first, second = distributed.total(self._token_moments.to(self.device)).tolist()
        variance = second / count - (first / count) ** 2
        if variance > 0:  # neither collapsed nor diverged
            for tokenizer in (self.tokenizer, self.ema.model):
                tokenizer.token_scale.fill_(variance**-0.5)
        self._scale_step = self.step
        self.log("val/token_scale", self.ema.model.token_scale, sync_dist=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fail with the names of weights that do not fit, which Lightning's own loading buries."""
        load_weights(self, checkpoint["state_dict"], "the checkpoint to go on from")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokenizer"] = self.sizes


def loss_per_pixel(reconstruction: Tensor, batch: Tensor) -> Tensor:
    """A loss summed over an image as a mean over its values, which is easier to read."""
    return reconstruction / batch[0].numel()
