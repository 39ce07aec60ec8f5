"""Lightning module of the tokenizer: two optimizers by hand, and the EMA copy."""

from typing import Annotated, Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from common import distributed, images, seeding
from common.checkpoint import load_weights
from common.config import instantiate, limits
from common.ema import EMA
from common.errors import UserError
from common.logger import MetricLogger
from common.schedule import WarmupDecay
from tokenizer import checkpoints
from tokenizer.config import AutoencoderConfig, SemanticConfig, TokenizerConfig
from tokenizer.losses.objective import Objective, Reconstruction
from tokenizer.model import Tokenizer

WARM = 10**6  # updates after which the warm-up of no EMA has an effect


class TokenizerModule(LightningModule):
    """A tokenizer (sizes as in `TokenizerConfig`), its EMA copy and its objective.

    The number of autoencoder updates so far, `step`, decides the learning rate, which terms of the
    objective count, and the random draws; Lightning counts batches, or both optimizers' updates.

    Args:
        learning_rate: base rate of both Adams (`base_learning_rate` of the YAML file).
        scheduler_config: keys of `WarmupDecay`, flat or as target and params.
        grad_clip: largest gradient norm of either update; 0 turns clipping off.
        ckpt_path: a tokenizer to start from, with its discriminator if that is of the same kind.
        stage2: train what follows the tokens only, from the EMA weights of `ckpt_path`.
        accumulate: batches of an update.
    """

    def __init__(
        self,
        ddconfig: AutoencoderConfig,
        embed_dim: int,
        lossconfig: dict[str, Any],
        std: float = 2.5,
        sematicconfig: SemanticConfig | None = None,
        post_channels: int | None = None,
        learning_rate: float = 1.92e-4,
        scheduler_config: dict[str, Any] | None = None,
        use_ema: bool = True,
        ema_decay: Annotated[float, limits(min=0, below=1)] = 0.99,
        grad_clip: Annotated[float, limits(min=0)] = 0.0,
        ckpt_path: str | None = None,
        stage2: bool = False,
        accumulate: int = 1,
        weights_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        sizes = TokenizerConfig(ddconfig, embed_dim, std, sematicconfig, post_channels)
        self.tokenizer = Tokenizer(**vars(sizes))
        self.ema = EMA(self.tokenizer, ema_decay, warmup=True) if use_ema else None
        self.objective: Objective = instantiate(
            lossconfig, "model.params.lossconfig", weights_dir=weights_dir
        )
        alignment, semantic = self.objective.alignment, self.tokenizer.semantic_decoder
        width = None if semantic is None else semantic.conv_out.out_channels
        if alignment is not None and width != alignment.channels:
            expected = f"{alignment.channels}, or lossconfig.params.semantic_loss_w: 0"
            raise UserError(f"sematicconfig.out_ch: found {width}, expected {expected}")
        if stage2 and (ckpt_path is None or alignment is not None):
            raise UserError("stage2: expected ckpt_path, and lossconfig.params.semantic_loss_w: 0")
        if ckpt_path and (not dist.is_initialized() or dist.get_rank() == 0):  # which sends it
            self._start_from(ckpt_path, stage2)
        if stage2:
            bottleneck = self.tokenizer.bottleneck
            for part in (self.tokenizer.encoder, bottleneck.mix_columns, bottleneck.to_tokens):
                part.requires_grad_(False)
        rates = scheduler_config or {}
        if "target" not in rates:
            rates = {"target": "common.schedule.WarmupDecay", "params": rates}
        self.schedule: WarmupDecay = instantiate(rates, "model.params.scheduler_config")
        self.learning_rate, self.grad_clip, self.accumulate = learning_rate, grad_clip, accumulate
        self.weights_dir, self.seed = weights_dir, seed
        self.metrics: MetricLogger | None = None
        self.step = 0  # updates of the autoencoder so far
        self.batches = 0  # of the update being made
        self._parts: dict[str, Tensor] = {}  # of their losses

    def _start_from(self, path: str, stage2: bool) -> None:
        """Load a tokenizer, its average, and its discriminator if that is of the same kind."""
        content = checkpoints.read(path, self.tokenizer.sizes)
        raw = checkpoints.part(content, "tokenizer.")
        average = checkpoints.part(content, "ema.model.") or raw
        load_weights(self.tokenizer, average if stage2 else raw, path)
        if self.ema is not None:
            load_weights(self.ema.model, average, path)
            self.ema.updates.fill_(WARM)  # so that what is loaded is not washed out at once
        if self.objective.discriminator is not None:
            found = checkpoints.part(content, "objective.discriminator.")
            own = self.objective.discriminator.state_dict().keys()
            if own <= found.keys():  # of one kind; a released file has its frozen network too
                load_weights(self.objective.discriminator, {k: found[k] for k in own}, path)

    def check_size(self, height: int, width: int, name: str) -> None:
        """Refuse images of sizes that the tokenizer or the discriminator cannot take."""
        self.tokenizer.check_size(height, width, name)
        least = getattr(self.objective.discriminator, "least", 0)
        if min(height, width) < least:
            found = f"{name} of {height} × {width}"
            raise UserError(f"disc_num_layers: found {found}, expected {least} pixels or more")

    @property
    def average(self) -> Tokenizer:
        """The tokenizer that is evaluated and exported: the EMA copy, if there is one."""
        return self.tokenizer if self.ema is None else self.ema.model

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        modules = [m for m in (self.tokenizer, self.objective.discriminator) if m is not None]
        trained = [[p for p in module.parameters() if p.requires_grad] for module in modules]
        options = {"lr": self.learning_rate, "betas": (0.5, 0.9), "fused": True}
        return [torch.optim.Adam(parameters, **options) for parameters in trained]

    def on_fit_start(self) -> None:
        distributed.broadcast_module(self)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        real = images.to_float(batch[0])  # [B, 3, H, W]
        active, key = self.objective.active(self.step), (self.step, self.batches)
        dropout = seeding.stream(self.seed, "dropout", *key, self.global_rank)
        torch.manual_seed(int(dropout.integers(2**63)))
        noise = seeding.generator(self.seed, "posterior", *key, device=self.device)
        draws = seeding.BatchDraws(noise, self.global_rank, self.trainer.world_size)

        posterior = self.tokenizer.encode(real)
        target, tokens = real, posterior.sample(draws)  # [B, 3, H, W], [B, L, C]
        if "semantic" in active:
            pixels, semantics = self.tokenizer.decode_with_semantics(tokens)
        else:
            pixels, semantics = self.tokenizer.decode(tokens), None
        fake = Reconstruction(target, pixels, semantics, posterior, draws)
        last_weight = self.tokenizer.decoder.conv_out.weight
        loss, parts = self.objective.autoencoder_loss(fake, last_weight, self.step)
        self.manual_backward(loss / self.accumulate)
        if "adversarial" in active:
            loss, more = self.objective.discriminator_loss(fake)
            self.manual_backward(loss / self.accumulate)
            parts |= more

        self._parts = {k: self._parts[k] + v if self.batches else v for k, v in parts.items()}
        self.batches = (self.batches + 1) % self.accumulate
        if self.batches:
            return
        rate = self.learning_rate * self.schedule.multiplier(self.step)
        norms = self.apply_gradients(rate, "adversarial" in active)
        values = {k: v / self.accumulate for k, v in self._parts.items()} | norms
        self.step += 1
        every = self.trainer.log_every_n_steps
        if every and self.step % every == 0:
            stacked = torch.stack([v.float() for v in values.values()])
            means = distributed.all_reduce_mean(stacked).tolist()
            self.record({"lr": rate, **dict(zip(values, means, strict=True))}, "train")
        self.log("rec", values["rec"], prog_bar=True, logger=False)

    def apply_gradients(self, rate: float, adversarial: bool) -> dict[str, Tensor]:
        """Both optimizers' steps, the autoencoder's at `rate` and the discriminator's at the base
        rate, and EMA; the gradients' norms before clipping."""
        found = self.optimizers()
        autoencoder = found[0] if isinstance(found, list) else found
        norms = {"grad_norm": self._update(autoencoder, self.tokenizer, rate)}
        if adversarial:  # without Lightning's wrapper, which would count these updates too
            given = (self.trainer.optimizers[1], self.objective.discriminator, self.learning_rate)
            norms["disc_grad_norm"] = self._update(*given)
        if self.ema is not None:
            self.ema.update(self.tokenizer)
        return norms

    def _update(self, optimizer: Any, module: nn.Module, rate: float) -> Tensor:
        """An optimizer's step; the gradients' norm before clipping."""
        parameters = [p for p in module.parameters() if p.grad is not None]
        distributed.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def record(self, values: dict[str, float], group: str) -> None:
        """Write values under the number of the autoencoder's updates."""
        if self.metrics is not None:
            self.metrics.scalars(self.step, {f"{group}/{k}": v for k, v in values.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fail with the names of weights that do not fit, which Lightning's own loading buries."""
        load_weights(self, checkpoint["state_dict"], "the checkpoint to go on from")
        self.step = checkpoint["updates"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"tokenizer": self.tokenizer.sizes, "updates": self.step}
