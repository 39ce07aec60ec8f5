"""Trainer of the generator: what an update is, what is due when, and how a run goes on.

All that is random in an update depends on the seed, the number of the update and the row of an
image in the whole batch; dropout depends on the process too.

Shapes: B batch of a process, L columns, C token channels.
"""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from common import checkpoint, distributed, seeding
from common.distributed import Process
from common.ema import EMA
from common.errors import Preempted, UserError
from common.logger import MetricLogger, progress_bar
from common.precision import uses_bf16
from common.seeding import BatchDraws
from common.signals import PreemptionHandler
from generator.checkpoints import GeneratorFile
from generator.config import TrainConfig, listed
from generator.evaluate import ColumnLosses, save_column_curves
from generator.model import Generator
from generator.objective import Draws, token_losses

LAST = "checkpoint-last.pth"
PATIENCE = 10  # updates left out in a row, after which the training stops


class LossModule(nn.Module):
    """The loss as a forward pass, which is what DDP synchronises; see `token_losses`."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Any) -> Tensor:
        return token_losses(self.model, *given)


def parameter_groups(model: Generator, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for all but biases, norms, one-dimensional parameters and the head."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim == 1 or name.startswith("head.") else decayed).append(parameter)
    free_group = {"params": free, "weight_decay": 0.0}
    return [{"params": decayed, "weight_decay": weight_decay}, free_group]


def random_runs(tokens: Tensor, columns: int, draws: BatchDraws) -> tuple[Tensor, Tensor]:
    """A random run of S columns of each image [B, L, C]: [B, S, C], and where it was, [B, S]."""
    batch, length, channels = tokens.shape
    starts = (draws.uniform(batch, 1) * (length - columns + 1)).long()
    places = starts + torch.arange(columns, device=tokens.device)  # [B, S]
    return tokens.gather(1, places[..., None].expand(-1, -1, channels)), places


@dataclass(eq=False)
class Trainer:
    """A model, its average and its optimizer, brought on update by update.

    An update whose loss or gradient norm is not finite leaves weights and moments as they are, to
    the bit. After `PATIENCE` of them in a row nothing moves any more, and `check` says so. Nothing
    in `train_step` waits for the device.
    """

    model: Generator
    config: TrainConfig
    process: Process
    loader: DataLoader  # of `training_batches`
    tokens: Callable[..., tuple[Tensor, Tensor]]  # of a batch: a `TokenSampler`
    columns: int  # of the training images, or tokens of their grids
    header: dict[str, Any]  # entries of `GeneratorFile`; a checkpoint with others is refused
    folder: Path  # of checkpoints and plots
    log_folder: Path
    held_out: DataLoader | None = None  # of `evaluation_batches`
    preview: Callable[[Generator, Path], None] | None = None  # writes samples into a file

    def __post_init__(self) -> None:
        config, process, model, columns = self.config, self.process, self.model, self.columns
        if config.subsequence > columns:
            raise UserError(f"--subsequence: found {config.subsequence}, but {columns} columns")
        if model.config.grid and (config.shift_num > 1 or config.subsequence):
            found = f"found {config.shift_num} and {config.subsequence}"
            raise UserError(f"--shift_num, --subsequence: {found}, expected 1 and 0 for a grid")
        text = f"0-{columns - 1}" if config.train_columns == "all" else config.train_columns
        self.trained = sorted(set(listed("--train_columns", text, columns)))
        self.trained_index = torch.tensor(self.trained, device=process.device)
        self.schedule = config.schedule(process.world)
        self.updates_an_epoch = len(self.loader) // config.accumulate
        self.images_an_update = config.batch_size * config.accumulate * process.world
        self.data = {"images": len(self.loader.dataset), "columns": columns}
        self.epoch = self.epoch_updates = self.step = 0  # updates: those done of this epoch

        distributed.broadcast_module(model.train())
        self.ema = EMA(model, config.ema_rate)
        groups = parameter_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, 0.0, (0.9, 0.95), fused=True)
        self.skipped = torch.zeros((), dtype=torch.int64, device=process.device)
        self.skipped_in_a_row = torch.zeros_like(self.skipped)
        self.bf16 = uses_bf16(config.precision, process.device)
        model.recompute = config.grad_checkpointing
        if config.compile:  # in place, so that the names of the weights stay
            for layer in model.layers:
                layer.compile()
                layer.read_context = torch.compile(layer.read_context)
            model.head.compile()
        self.loss_module: nn.Module = LossModule(model)
        if process.world > 1:
            self.loss_module = DDP(self.loss_module, gradient_as_bucket_view=True)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.epochs or 0 < self.config.max_steps <= self.step

    def run(self) -> None:
        """Train from where the state stands to the end, or to a signal (`Preempted`)."""
        main, begin = self.process.is_main, self.step
        total = self.config.epochs * self.updates_an_epoch
        total = min(total, self.config.max_steps or total)
        self.logs = MetricLogger(self.log_folder, self.step) if main else None
        with (
            closing(self.logs) if self.logs else nullcontext(),
            progress_bar(total, "generator", "step", main, min(self.step, total)) as self.bar,
            PreemptionHandler(self.process) as signals,
        ):
            while not self.finished:
                self._run_epoch(signals)
            if self.epoch_updates and self.step > begin:  # otherwise written already
                self.save(LAST)
        self._plot()

    def _run_epoch(self, signals: PreemptionHandler) -> None:
        """The rest of an epoch, or less if training ends in it, by itself or by a signal."""
        config = self.config
        self.loader.sampler.resume(self.epoch, self.epoch_updates)
        loaded = iter(self.loader)
        for _ in range(self.updates_an_epoch - self.epoch_updates):
            rate = self.schedule.rate(self.epoch + self.epoch_updates / self.updates_an_epoch)
            batches = list(islice(loaded, config.accumulate))
            losses, norm = self.train_step(batches, rate)
            self.epoch_updates += 1
            self.bar.update()
            ended = self.epoch_updates == self.updates_an_epoch
            logged = ended or self.finished or self.step % config.log_freq == 0
            if logged:
                self._log_step(losses, norm, rate)
            if ended:
                self.epoch, self.epoch_updates = self.epoch + 1, 0
                self._end_epoch()
            if self.finished:
                return
            # several GPUs agree on signals where they wait for each other anyway
            agreed = logged or self.process.world == 1 or self.process.device.type == "cpu"
            asked, leave = signals.requested() if agreed else (False, 0)
            if asked or (config.save_steps and self.step % config.save_steps == 0):
                self.save(LAST)
            if leave:
                stands = f"{self.folder / LAST} stands after {self.step} updates"
                raise Preempted(leave, f"{stands}; --resume goes on")

    def train_step(self, batches: Sequence[Any], rate: float) -> tuple[ColumnLosses, Tensor]:
        """Update number `step` (0 first); losses by column, and the gradient norm, not clipped."""
        losses = ColumnLosses(self.columns, self.process.device)
        loss = torch.zeros((), device=self.process.device)
        for i, batch in enumerate(batches):
            joins = self.process.world == 1 or i + 1 == len(batches)
            with nullcontext() if joins else self.loss_module.no_sync():
                loss += self._backward(batch, (self.step, i), losses)
        loss = distributed.all_reduce_sum(loss)
        self.step += 1

        largest = self.config.grad_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        bad = ~(norm.isfinite() & loss.isfinite())
        stopped = self.skipped_in_a_row >= PATIENCE
        self.skipped += bad
        in_a_row = (self.skipped_in_a_row + 1) * bad
        self.skipped_in_a_row = torch.where(stopped, self.skipped_in_a_row, in_a_row)
        # the fused optimizer leaves everything as it is where this is not zero
        self.optimizer.found_inf = (bad | stopped).float()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return losses, norm

    def _backward(self, batch: Any, key: tuple[int, int], losses: ColumnLosses) -> Tensor:
        """Add the gradients of a batch; its part of the loss."""
        config, process, places = self.config, self.process, None
        dropout = seeding.stream(config.seed, "dropout", *key, process.rank)
        torch.manual_seed(int(dropout.integers(2**63)))
        randomness = seeding.generator(config.seed, "step", *key, device=process.device)
        rows = BatchDraws(randomness, process.rank, process.world)
        tokens, labels = self.tokens(batch, rows)
        if config.subsequence:
            tokens, places = random_runs(tokens, config.subsequence, rows)
        shift = int(seeding.stream(config.seed, "shift", key[0]).integers(config.shift_num))
        repeats = config.diffusion_batch_mul
        draws = Draws.random(tokens, rows, shift, config.label_drop_prob, repeats)
        with torch.autocast(process.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.loss_module(tokens, labels, draws)  # [repeats, B, L]
        losses.add(found, places)
        by_column = found.mean(dim=(0, 1))  # [L]
        if config.train_columns != "all":
            by_column = by_column[self.trained_index]
        loss = by_column.mean() / config.accumulate
        loss.backward()
        return loss.detach()

    def check(self) -> None:
        """Wait for the device, and refuse to go on after too many updates left out."""
        if self.skipped_in_a_row >= PATIENCE:
            found = f"training: not finite in {PATIENCE} updates in a row before {self.step}"
            raise UserError(f"{found}, expected a smaller --blr from the last checkpoint on")

    def _log_step(self, losses: ColumnLosses, norm: Tensor, rate: float) -> None:
        """Read and log how an update went; the one place that waits for the device."""
        self.check()
        means = losses.means()
        trained = [means[i] for i in self.trained if i in means]
        loss = sum(trained) / len(trained)
        self.bar.set_postfix(loss=f"{loss:.4f}", epoch=self.epoch + 1, refresh=False)
        others = {"loss": loss, "grad_norm": norm.item(), "lr": rate, "skipped": int(self.skipped)}
        self._log("columns", means, {f"train/{name}": value for name, value in others.items()})

    def _log(self, name: str, means: dict[int, float], others: dict[str, float]) -> None:
        if self.logs:
            columns = {f"{name}/loss_{i:02d}": value for i, value in means.items()}
            self.logs.scalars(self.step, columns | others)

    def _end_epoch(self) -> None:
        """What is due after an epoch. The last checkpoint is written last: a run that is killed
        before goes on from an earlier one, and makes up for all of it."""
        config, epoch = self.config, self.epoch

        def due(every: int) -> bool:
            return every > 0 and (epoch % every == 0 or self.finished)

        if due(config.eval_freq):
            means = self.evaluate()
            self._log("eval_columns", means, {"eval/loss": sum(means.values()) / len(means)})
            self._plot()
        if due(config.sample_freq) and self.process.is_main:
            self.preview(self.ema.model, self.folder / "samples" / f"epoch_{epoch:05d}.png")
        if config.save_freq and epoch % config.save_freq == 0:
            self.save(f"checkpoint-ckpt-{epoch}.pth")
        if due(config.save_last_freq):
            self.save(LAST)

    @torch.inference_mode()
    def evaluate(self) -> dict[int, float]:
        """The mean loss of each column of the batches held out, with the averaged weights and the
        condition, from position 0 and with the same draws every time."""
        losses, seed = None, self.config.seed
        for i, batch in enumerate(self.held_out):
            randomness = seeding.generator(seed, "evaluation", i, device=self.process.device)
            rows = BatchDraws(randomness, self.process.rank, self.process.world)
            tokens, labels = self.tokens(batch, rows)
            draws = Draws.random(tokens, rows, 0, 0.0, self.config.diffusion_batch_mul)
            losses = losses or ColumnLosses(tokens.shape[1], self.process.device)
            losses.add(token_losses(self.ema.model, tokens, labels, draws))
        return losses.means()

    def _plot(self) -> None:
        if self.process.is_main:
            save_column_curves(self.log_folder / "metrics.csv", self.folder / "columns.png")

    def save(self, name: str) -> None:
        """Write the whole state to `folder / name`, as `GeneratorFile` lists it."""
        self.check()
        if self.process.is_main:
            state = {
                "model": self.model.state_dict(),
                "model_ema": self.ema.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": asdict(self.model.config),
                "training": asdict(self.config),
                "data": self.data,
                "epoch": self.epoch,
                "epoch_images": self.epoch_updates * self.images_an_update,
                "step": self.step,
                "skipped": int(self.skipped),
                "skipped_in_a_row": int(self.skipped_in_a_row),
            }
            checkpoint.save(self.folder / name, state | self.header)
        distributed.barrier()

    def load(self, file: GeneratorFile, source: Path) -> None:
        """Go on from a checkpoint of the same model and tokenizer with the rates that are set here;
        within an epoch the data must be the same, and whole updates of this size done."""
        done, size = file.epoch_images, self.images_an_update
        same = {**self.header, "generator": self.model.config, "data": self.data}
        for key, value in same.items():
            found = getattr(file, key)
            if found != value and (done or key != "data"):
                raise UserError(f"{source}: {key}: found {found!r}, expected {value!r}")
        if done % size:
            expected = f"a divisor of the {done} done of this epoch"
            raise UserError(f"--batch_size: found {size} images an update, expected {expected}")
        file.fill(self.model, "model", source)
        file.fill(self.ema.model, "model_ema", source)
        self.ema.updates.fill_(file.step)
        self.optimizer.load_state_dict(file.optimizer)
        decayed, free = self.optimizer.param_groups
        decayed["weight_decay"], free["weight_decay"] = self.config.weight_decay, 0.0
        self.skipped.fill_(file.skipped)
        self.skipped_in_a_row.fill_(file.skipped_in_a_row)
        self.epoch, self.step, self.epoch_updates = file.epoch, file.step, done // size
        if self.epoch_updates >= self.updates_an_epoch:  # larger updates leave out more at the end
            self.epoch, self.epoch_updates = self.epoch + 1, 0
