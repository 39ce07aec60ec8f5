"""The training loop of the generator, on one process or many.

Shapes: B batch of a process, L columns, C token channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from common import checkpoint, distributed, seeding
from common.distributed import Process
from common.ema import EMA
from common.errors import UserError
from common.logs import Logs, Unreadable, progress
from generator.model import Generator
from generator.objective import Draws, training_loss
from generator.schedule import Schedule

# a batch of the loader, a torch generator on the device → tokens [B, L, C], labels [B]
Tokenise = Callable[[Any, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingConfig:
    """How the generator is trained; defaults are the paper's.

    Args:
        lr: rate after the warm-up (`blr` × global batch / 256).
        epochs, warmup_epochs, min_lr, lr_schedule: see `Schedule`.
        weight_decay: of matrices outside the head.
        grad_clip: largest gradient norm.
        ema_rate: of the EMA weights.
        label_drop_prob: how often a sample loses its class.
        shift_num: positions are shifted by 0 … shift_num − 1, one shift a batch.
        diffusion_batch_mul: flow draws a token.
        bf16: run the transformer and head under bfloat16 autocast.
        log_freq: steps between two entries of the logs.
        save_last_freq, save_freq: epochs between two checkpoints that replace each other, and
            between two that are kept (0: none).
        seed: of all draws.
    """

    lr: float
    epochs: int
    warmup_epochs: float = 100
    min_lr: float = 0.0
    lr_schedule: str = "constant"
    weight_decay: float = 0.02
    grad_clip: float = 3.0
    ema_rate: float = 0.9999
    label_drop_prob: float = 0.1
    shift_num: int = 16
    diffusion_batch_mul: int = 4
    bf16: bool = False
    log_freq: int = 20
    save_last_freq: int = 1
    save_freq: int = 0
    seed: int = 0


class LossModule(nn.Module):
    """The loss as a forward pass, which is what DDP synchronises."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return training_loss(self.model, tokens, labels, draws)


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


class Trainer:
    """Model, EMA and optimizer, and the steps that change them.

    Args:
        model: on the process's device.
        config: see `TrainingConfig`.
        process: this process.
        loader: training batches over a `DrawSampler`.
        tokenise: turns a batch into tokens in the model's scale.
        folder: where checkpoints and logs go.
        header: plain values that every checkpoint carries beside the state.
    """

    def __init__(
        self,
        model: Generator,
        config: TrainingConfig,
        process: Process,
        loader: DataLoader,
        tokenise: Tokenise,
        folder: Path,
        header: dict[str, Any],
    ) -> None:
        distributed.broadcast(model)
        self.model = model.train()
        self.ema = EMA(model, config.ema_rate)
        self.config = config
        self.process = process
        self.loader = loader
        self.tokenise = tokenise
        self.folder = folder
        self.header = header
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay),
            lr=config.lr,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.schedule = Schedule(
            config.lr, config.epochs, config.warmup_epochs, config.min_lr, config.lr_schedule
        )
        self.epoch = 0
        self.step = 0
        self.loss_module: nn.Module = LossModule(model)
        if process.world > 1:
            on_gpu = process.device.type == "cuda"
            self.loss_module = DistributedDataParallel(
                self.loss_module, device_ids=[process.device.index] if on_gpu else None
            )

    def run(self) -> None:
        """Train from where the state stands to the last epoch."""
        main = self.process.is_main
        logs = Logs(self.folder) if main else None
        unreadable = Unreadable(self.loader.dataset, "images", self.process.device)
        steps = len(self.loader)
        total = self.config.epochs * steps
        bar = progress(total, "generator", "step", main, min(self.epoch * steps, total))
        while self.epoch < self.config.epochs:
            self.loader.sampler.set_epoch(self.epoch)
            for i, (loss, norm) in enumerate(self._epoch()):
                bar.update()
                if self.step % self.config.log_freq == 0 or i == steps - 1:
                    values = self._describe(loss, norm)
                    loss_text = f"{values['train/loss']:.4f}"
                    bar.set_postfix(loss=loss_text, epoch=self.epoch + 1, refresh=False)
                    if logs:
                        logs.scalars(self.step, values)
            self.epoch += 1
            self._save_due()
            message = unreadable.news()
            if message and main:
                bar.write(message)
        bar.close()
        if logs:
            logs.close()

    def _epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the data; the loss of each column [L] and the gradient norm a step."""
        for i, batch in enumerate(self.loader):
            rate = self.schedule.rate(self.epoch + i / len(self.loader))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield self._train_step(batch)

    def _train_step(self, batch: Any) -> tuple[Tensor, Tensor]:
        config, device = self.config, self.process.device
        key = (self.step, self.process.rank)
        torch.manual_seed(int(seeding.stream(config.seed, "dropout", *key).integers(2**63)))
        randomness = seeding.generator(config.seed, "step", *key, device=device)
        tokens, labels = self.tokenise(batch, randomness)
        draws = Draws.random(
            tokens,
            randomness,
            shift=int(seeding.stream(config.seed, "shift", self.step).integers(config.shift_num)),
            drop_probability=config.label_drop_prob,
            repeats=config.diffusion_batch_mul,
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss = self.loss_module(tokens, labels, draws)  # [L]
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return loss.detach(), norm

    def _describe(self, loss: Tensor, norm: Tensor) -> dict[str, float]:
        columns = distributed.mean(loss).tolist()
        values = {f"columns/loss_{i:02d}": v for i, v in enumerate(columns)}
        values["train/loss"] = sum(columns) / len(columns)
        values["train/grad_norm"] = norm.item()
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        return values

    def _save_due(self) -> None:
        last = self.epoch == self.config.epochs
        if last or self.epoch % self.config.save_last_freq == 0:
            self.save("checkpoint-last.pth")
        if self.config.save_freq and self.epoch % self.config.save_freq == 0:
            self.save(f"checkpoint-ckpt-{self.epoch}.pth")

    def save(self, name: str) -> None:
        """Write the whole state to `folder / name`."""
        if self.process.is_main:
            state = {
                "model": self.model.state_dict(),
                "model_ema": self.ema.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "training": asdict(self.config),
                **self.header,
            }
            checkpoint.save(self.folder / name, state)
        distributed.barrier()

    def load(self, path: Path) -> None:
        """Go on from a checkpoint that `save` wrote.

        Raises:
            UserError: it is none, or one of another model, tokenizer, data or seed.
        """
        state = checkpoint.load(path)
        absent = {"model", "model_ema", "optimizer", "epoch", "step", "training"} - state.keys()
        if absent:
            raise UserError(
                f"{path}: has no {', '.join(sorted(absent))}; expected a checkpoint that training "
                "wrote"
            )
        for key, value in self.header.items():
            if state.get(key) != value:
                raise UserError(f"{path}: {_difference(key, state.get(key), value)}")
        if state["training"]["seed"] != self.config.seed:
            raise UserError(
                f"--seed: found {self.config.seed}, expected {state['training']['seed']}, with "
                f"which {path} was trained"
            )
        checkpoint.load_weights(self.model, state["model"], path)
        checkpoint.load_weights(self.ema.model, state["model_ema"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.ema.updates.fill_(self.step)


def _difference(key: str, found: Any, expected: Any) -> str:
    """What differs between the value of a header here and in a checkpoint."""
    if isinstance(found, dict) and isinstance(expected, dict):
        key, found, expected = next(
            (f"{key} {k}", found.get(k), expected.get(k))
            for k in expected | found
            if found.get(k) != expected.get(k)
        )
    return f"was trained with {key} {found!r}, found {expected!r} now"
