"""What an update is made of: batches to tokens, draws, loss and gradients, on every process.

Shapes: B batch of a process, L columns, C token channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import distributed, seeding
from common.distributed import Process
from common.errors import UserError
from common.precision import uses_bf16
from common.seeding import BatchDraws
from generator.columns import ColumnLosses, parse_columns, random_runs
from generator.data import Tokenise
from generator.model import Generator
from generator.objective import Draws, token_losses
from generator.settings import TrainingConfig
from generator.updates import Updates


class LossModule(nn.Module):
    """The loss as a forward pass, which is what DDP synchronises; see `token_losses`."""

    def __init__(self, model: Generator, share_classes: bool = False) -> None:
        super().__init__()
        self.model = model
        self.share_classes = share_classes

    def forward(self, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return token_losses(self.model, tokens, labels, draws, self.share_classes)


class Learner:
    """A model, its average and its optimizer.

    All that is random in an update depends on the seed, the number of the update and the row of an
    image in the whole batch; dropout depends on the process too.

    Args:
        model: on the process's device.
        config: see `TrainingConfig`.
        process: this process.
        tokenise: turns a batch into tokens in the model's scale.
        columns: L, of the training images.

    Raises:
        UserError: the settings ask for columns that images do not have.
    """

    def __init__(
        self,
        model: Generator,
        config: TrainingConfig,
        process: Process,
        tokenise: Tokenise,
        columns: int,
    ) -> None:
        if config.subsequence > columns:
            raise UserError(
                f"--subsequence: found {config.subsequence}, but images have {columns} columns"
            )
        self.trained = parse_columns(config.train_columns, columns)
        self._trained = torch.tensor(self.trained, device=process.device)
        distributed.broadcast(model)
        self.model = model.train()
        self.config = config
        self.process = process
        self.tokenise = tokenise
        self.columns = columns
        self.updates = Updates(model, config)
        self.bf16 = uses_bf16(config.precision, process.device)
        self.loss_module = self._prepare()

    def _prepare(self) -> nn.Module:
        """The model as it is trained: recomputing, compiled, and joined with other processes."""
        model, device = self.model, self.process.device
        model.recompute = self.config.grad_checkpointing
        if self.config.compile:  # in place, so that the names of the weights stay
            for layer in model.layers:
                layer.compile()
                layer.read_class = torch.compile(layer.read_class)
            model.head.compile()
        module = LossModule(model, self.config.share_classes)
        if self.process.world == 1:
            return module
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, devices, gradient_as_bucket_view=True)

    def update(self, batches: Sequence[Any], step: int, rate: float) -> tuple[ColumnLosses, Tensor]:
        """Update number `step` (0 first) with some batches.

        Returns:
            The loss of each column, and the gradient norm before clipping.
        """
        losses = ColumnLosses(self.columns, self.process.device)
        whole = torch.zeros((), device=self.process.device)
        for i, batch in enumerate(batches):
            joins = self.process.world == 1 or i + 1 == len(batches)
            with nullcontext() if joins else self.loss_module.no_sync():
                whole += self._backward(batch, (step, i), losses)
        return losses, self.updates.make(distributed.total(whole), rate)

    def _backward(self, batch: Any, key: tuple[int, int], losses: ColumnLosses) -> Tensor:
        """Add the gradients of a batch; its part of the loss."""
        config, process, numbers = self.config, self.process, None
        dropout = seeding.stream(config.seed, "dropout", *key, process.rank)
        torch.manual_seed(int(dropout.integers(2**63)))
        randomness = seeding.generator(config.seed, "step", *key, device=process.device)
        rows = BatchDraws(randomness, process.rank, process.world)
        tokens, labels = self.tokenise(batch, rows)
        if config.subsequence:
            tokens, numbers = random_runs(tokens, config.subsequence, rows)
        draws = Draws.random(
            tokens,
            rows,
            shift=int(seeding.stream(config.seed, "shift", key[0]).integers(config.shift_num)),
            drop_probability=config.label_drop_prob,
            repeats=config.diffusion_batch_mul,
        )
        with torch.autocast(process.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.loss_module(tokens, labels, draws)  # [repeats, B, L]
        losses.add(found, numbers)
        by_column = found.mean(dim=(0, 1))  # [L]
        if config.train_columns != "all":
            by_column = by_column[self._trained]
        loss = by_column.mean() / config.accumulate
        loss.backward()
        return loss.detach()
