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
from tokenizer.blocks import Level
from tokenizer.config import parse
from tokenizer.loading import load_tokenizer
from tokenizer.losses.objective import Objective, Reconstruction
from tokenizer.model import Tokenizer
from tokenizer.scale import Moments
from tokenizer.schedule import Schedule
from tokenizer.validation import Fidelity, available_lpips


class TokenizerModule(LightningModule):
    """A tokenizer, its EMA copy and its objective.

    The number of autoencoder updates so far, `step`, decides the learning rate, the thresholds of
    the objective and the random draws; Lightning's own counters count batches, or the updates of
    both optimizers.

    Args:
        ddconfig, sematicconfig, embed_dim, post_channels, std: sizes, see `Tokenizer`.
        lossconfig: target and params of the objective.
        learning_rate: base rate of both Adams (`base_learning_rate` of the YAML file).
        scheduler_config: multiplier of the autoencoder's rate, see `Schedule`.
        ema_decay: of the EMA copy, after its warm-up.
        grad_clip: largest gradient norm of either update; 0 turns clipping off.
        ckpt_path: a tokenizer to start from, of our training or released.
        stage2: train decoder, semantic decoder and the convolution before them only, from the EMA
            weights of `ckpt_path`; the tokens stay as they are.
        compile: compile encoder and decoder.
        channels_last: keep feature maps with their channels innermost.
        grad_checkpointing: recompute activations in the backward pass, see `Level`.
        accumulate: batches of which an update is made.
        weights_dir: folder of the pretrained networks.
        seed: of all that is drawn.

    Raises:
        UserError: a value that cannot be.
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
        ckpt_path: str | None = None,
        stage2: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        grad_checkpointing: bool = False,
        accumulate: int = 1,
        weights_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay: found {ema_decay}, expected a number in [0, 1)")
        for least, values in {
            1: {"embed_dim": embed_dim, "accumulate": accumulate},
            0: {"std": std, "grad_clip": grad_clip, "base_learning_rate": learning_rate},
        }.items():
            for key, value in values.items():
                if not value >= least:
                    raise UserError(f"{key}: found {value}, expected {least} or more")
        self.tokenizer = Tokenizer(ddconfig, embed_dim, std, sematicconfig, post_channels)
        self.ema = EMA(self.tokenizer, ema_decay, warmup=True)
        self.objective: Objective = configuration.instantiate(
            lossconfig, "model.params.lossconfig", weights_dir=weights_dir
        )
        self._check(stage2, ckpt_path)
        if ckpt_path is not None:
            self._start_from(ckpt_path, stage2)
        if stage2:
            self.tokenizer.encoder.requires_grad_(False)
            self.tokenizer.to_tokens.requires_grad_(False)
        self.schedule = parse(Schedule, scheduler_config or {}, "scheduler_config")
        self.learning_rate = learning_rate
        self.grad_clip = grad_clip
        self.accumulate = accumulate
        self.weights_dir = weights_dir
        self.seed = seed
        self._make_fast(compile, channels_last, grad_checkpointing)

    def _check(self, stage2: bool, ckpt_path: str | None) -> None:
        alignment, semantic = self.objective.alignment, self.tokenizer.semantic_decoder
        if stage2 and ckpt_path is None:
            raise UserError("ckpt_path: missing; stage2 starts from a tokenizer's checkpoint")
        if stage2 and alignment is not None:
            raise UserError(
                "lossconfig.params.semantic_loss_w: found "
                f"{self.objective.semantic_weight}, expected 0 with stage2: true"
            )
        if alignment is not None and semantic is None:
            raise UserError(
                "sematicconfig: missing; lossconfig.params.semantic_loss_w asks for a semantic "
                "decoder (expected its sizes, or semantic_loss_w 0)"
            )
        if alignment is not None and semantic.conv_out.out_channels != alignment.channels:
            raise UserError(
                f"sematicconfig.out_ch: found {semantic.conv_out.out_channels}, expected the "
                f"{alignment.channels} channels of the network it is aligned with"
            )

    def _start_from(self, path: str, stage2: bool) -> None:
        sizes = self.tokenizer.sizes
        average = load_tokenizer(path, sizes, ema=True)
        raw = average if stage2 else load_tokenizer(path, sizes, ema=False)
        load_weights(self.tokenizer, raw.state_dict(), path)
        load_weights(self.ema.model, average.state_dict(), path)

    def _make_fast(self, compile: bool, channels_last: bool, recompute: bool) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.tokenizer.to(memory_format=self.layout)
        self.ema.to(memory_format=self.layout)
        for level in self.tokenizer.modules():
            if isinstance(level, Level):
                level.recompute = recompute
        if compile:  # in place, so that the names of the weights stay
            self.tokenizer.encoder.compile()
            # without the last convolution, for whose weight the adaptive factor asks by itself
            decoder = self.tokenizer.decoder
            decoder.trunk = torch.compile(decoder.trunk)

    @property
    def between_updates(self) -> bool:
        """Whether no batch has been added to the next update yet."""
        return self._batches == 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        modules = [self.tokenizer]
        if self.objective.discriminator is not None:
            modules.append(self.objective.discriminator)
        return [
            torch.optim.Adam(
                [p for p in module.parameters() if p.requires_grad],
                lr=self.learning_rate,
                betas=(0.5, 0.9),
                fused=True,
            )
            for module in modules
        ]

    def on_fit_start(self) -> None:
        self.step = self.first_step = int(self.ema.updates)  # updates of the autoencoder so far
        self._batches = 0  # of the update being made
        self._lpips = self.objective.perceptual or available_lpips(self.weights_dir)
        distributed.broadcast(self)

    def on_train_start(self) -> None:
        """Bring the optimizers' moments into the layout of their weights, which may have changed
        since the checkpoint; fused updates walk through both side by side."""
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                for name in ("exp_avg", "exp_avg_sq"):
                    if state[name].stride() != weight.stride():
                        state[name] = torch.empty_like(weight).copy_(state[name])

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        real = self.prepare(batch)  # [B, 3, H, W]
        rate = self.learning_rate * self.schedule.multiplier(self.step)
        adversarial = self.objective.adversarial(self.step)
        key = (self.step, self._batches)
        dropout = seeding.stream(self.seed, "dropout", *key, self.global_rank)
        torch.manual_seed(int(dropout.integers(2**63)))
        draws = seeding.BatchDraws(
            seeding.generator(self.seed, "posterior", *key, device=self.device),
            self.global_rank,
            self.trainer.world_size,
        )

        fake = self.reconstruct(real, draws)
        loss = self.objective.autoencoder_loss(
            real, fake, self.tokenizer.decoder.conv_out.weight, self.step, draws
        )
        self.manual_backward(loss.total / self.accumulate)
        terms = loss.terms
        if adversarial:
            loss = self.objective.discriminator_loss(real, fake.images, draws)
            self.manual_backward(loss.total / self.accumulate)
            terms = terms | loss.terms

        self._terms = terms if self._batches == 0 else {k: self._terms[k] + terms[k] for k in terms}
        self._batches += 1
        if self._batches < self.accumulate:
            return
        self._batches = 0
        terms = {k: v / self.accumulate for k, v in self._terms.items()}
        terms |= self.apply_gradients(rate, adversarial)
        self.step += 1
        every = self.trainer.log_every_n_steps
        if every and self.step % every == 0:
            means = distributed.mean(torch.stack([v.float() for v in terms.values()])).tolist()
            self._record({"lr": rate, **dict(zip(terms, means, strict=True))}, "train")
        self.log("pixel", terms["pixel"], prog_bar=True, logger=False)

    def apply_gradients(self, rate: float, adversarial: bool) -> dict[str, Tensor]:
        """Both optimizers' steps, and EMA; the gradients' norms before clipping."""
        autoencoder, discriminator = self._optimizers(rate)
        norms = {"grad_norm": self._update(autoencoder, self.tokenizer)}
        self.ema.update(self.tokenizer)
        if adversarial:
            norms["disc_grad_norm"] = self._update(discriminator, self.objective.discriminator)
        return norms

    def prepare(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of a batch of uint8 ones and their labels."""
        return images.to_float(batch[0]).contiguous(memory_format=self.layout)

    def reconstruct(self, real: Tensor, draws: seeding.BatchDraws) -> Reconstruction:
        """What the autoencoder makes of images [B, 3, H, W] with the posterior's noise."""
        posterior = self.tokenizer.encode(real)
        tokens = posterior.sample(draws)
        if self.objective.semantic(self.step):
            return Reconstruction(*self.tokenizer.decode_with_semantics(tokens), posterior)
        return Reconstruction(self.tokenizer.decode(tokens), None, posterior)

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

    def _update(self, optimizer: Any, module: nn.Module) -> Tensor:
        """One optimizer step with the gradients there are; their norm before clipping."""
        parameters = [p for p in module.parameters() if p.grad is not None]
        distributed.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _record(self, values: Mapping[str, float], group: str) -> None:
        """Write values at the number of updates, whatever Lightning counts."""
        for logger in self.loggers:
            logger.log_metrics({f"{group}/{k}": v for k, v in values.items()}, step=self.step)

    def on_validation_epoch_start(self) -> None:
        self._moments = Moments()
        self._fidelity = Fidelity(self._lpips)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Fidelity with EMA weights, and the moments of the tokens."""
        real = self.prepare(batch)
        posterior = self.ema.model.encode(real)
        self._fidelity.add(self.ema.model.decode(posterior.mode()), real)
        self._moments.add(posterior)

    def on_validation_epoch_end(self) -> None:
        values = self._fidelity.means(self.device)
        self.log_dict({f"val/{k}": v for k, v in values.items()}, logger=False, sync_dist=True)
        self.log("psnr", values["psnr"], prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            scale = self._moments.scale(self.device)
            if scale is not None:  # neither collapsed nor diverged
                self.set_token_scale(scale)
                values["token_scale"] = scale
            self._record(values, "val")

    def set_token_scale(self, scale: float) -> None:
        """The tokens' scale, 1/std, which the checkpoint carries to stage two."""
        for tokenizer in (self.tokenizer, self.ema.model):
            tokenizer.token_scale.fill_(scale)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fail with the names of weights that do not fit, which Lightning's own loading buries."""
        load_weights(self, checkpoint["state_dict"], "the checkpoint to go on from")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokenizer"] = self.tokenizer.sizes
