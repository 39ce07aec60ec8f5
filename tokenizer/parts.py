"""What an update of stage one's training costs, as a whole and in its parts.

Whole updates are those of Lightning's own loop; the parts are measured afterwards by the same
methods, waiting for the device around each.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from common import config, peak, seeding
from common.errors import UserError
from tokenizer.lightning import TokenizerModule
from tokenizer.losses.dino import DinoDiscriminator
from tokenizer.losses.objective import Objective, Reconstruction

ALL, NO_ADVERSARY = 0, -1  # steps of an objective with these thresholds
THRESHOLDS = {"disc_start": ALL, "semantic_start": NO_ADVERSARY}
NO_TERMS = {"rec", "total", "d_weight"}  # what an objective logs beside its terms
COST = ("seconds", "flops", "traffic")  # of a part, as in `peak.Work`


class Updates(pl.Callback):
    """Times `updates` updates after `warmup` others, and counts the work of one more.

    At the end it measures the parts, before Lightning takes the module off the device.
    """

    def __init__(self, pictures: Tensor, warmup: int, updates: int) -> None:
        self.pictures, self.warmup, self.updates = pictures, warmup, updates
        self.marks: list[Any] = []
        self.counting = ExitStack()

    def on_train_batch_start(self, _: pl.Trainer, module: TokenizerModule, *__: Any) -> None:
        if module.between_updates and module.step == self.warmup + self.updates:
            self.work = self.counting.enter_context(peak.counted())

    def on_train_batch_end(self, _: pl.Trainer, module: TokenizerModule, *__: Any) -> None:
        done = module.step - self.warmup
        if not module.between_updates or done < 0:
            return
        if done == 0 and module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)
        if done <= self.updates:
            self.marks.append(mark(module.device))
        if done == self.updates:
            peak.synchronise(module.device)
            self.seconds = [between(*pair) for pair in itertools.pairwise(self.marks)]
            self.peak_memory = peak.peak_memory(module.device)
        self.counting.close()

    def on_train_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.whole = np.array([np.median(self.seconds), self.work.flops, self.work.traffic])
        with trainer.precision_plugin.train_step_context():
            self.parts = Parts(module, self.pictures)
            self.split = self.parts.measure(self.warmup, self.updates)
        self.split["rest"] = self.whole - sum(self.split.values())


def mark(device: torch.device) -> Any:
    """A point in the time of the device, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


def time_training(
    module: TokenizerModule,
    pictures: Tensor,
    options: dict[str, Any],
    device: torch.device,
    warmup: int,
    updates: int,
) -> Updates:
    """What was measured while training on the same pictures, uint8 [B, 3, H, W]."""
    on_gpu = device.type == "cuda"
    timed = Updates(pictures, warmup, updates)
    trainer = config.instantiate(
        {"target": "pytorch_lightning.Trainer", "params": options},
        "lightning.trainer",
        accelerator="gpu" if on_gpu else "cpu",
        devices=[device.index] if on_gpu else 1,
        max_epochs=1,
        callbacks=[timed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`")
    batches = [(pictures, torch.zeros(len(pictures)))] * module.accumulate
    batches *= warmup + updates + 1
    try:
        trainer.fit(module, DataLoader(batches, batch_size=None, pin_memory=on_gpu))
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch_size: {len(pictures)} pictures do not fit into the memory of {device}; "
            "expected fewer, or --grad_checkpointing"
        ) from None
    return timed


class Recorded:
    """A frozen network whose passes are recorded; then it stands still, and they can be repeated.

    Standing still, it gives what it gave for an input of this shape, in a graph that reaches the
    new input.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self.inputs: list[tuple[Any, ...]] = []
        self.backward_passes: list[int] = []
        self.outputs: dict[torch.Size, Any] = {}
        self.still = False

    def __call__(self, x: Tensor, *more: Any) -> Any:
        if self.still:
            link = x[(0,) * x.ndim] * 0 if x.requires_grad else 0
            return tree_map(lambda tensor: tensor + link, self.outputs[x.shape])
        number = len(self.inputs)
        self.inputs.append(tuple(v.detach() if isinstance(v, Tensor) else v for v in (x, *more)))
        self.backward_passes.append(0)
        output = self.network(x, *more)
        last = tree_leaves(output)[-1]
        if last.requires_grad:
            last.register_hook(lambda _: self._passed(number))
        self.outputs[x.shape] = tree_map(Tensor.detach, output)
        return output

    def _passed(self, number: int) -> None:
        self.backward_passes[number] += 1

    def repeat(self) -> None:
        """All its passes of an update."""
        for (x, *more), passes in zip(self.inputs, self.backward_passes, strict=True):
            x = apart(x) if passes else x
            output = tree_leaves(self.network(x, *more))
            for left in reversed(range(passes)):
                given = [torch.ones_like(tensor) for tensor in output]
                torch.autograd.backward(output, given, retain_graph=left > 0)


def frozen_networks(objective: Objective) -> dict[str, tuple[Any, str]]:
    """The frozen networks that the objective has: who holds each, and under which name."""
    found: dict[str, tuple[Any, str]] = {}
    if objective.perceptual is not None:
        found["lpips"] = (objective.perceptual, "network")
    if objective.alignment is not None:
        found["alignment"] = (objective.alignment, "network")
    if isinstance(objective.discriminator, DinoDiscriminator):
        found["dino_trunk"] = (objective.discriminator, "trunk")
    return found


class Parts:
    """The parts of an update, by the methods that training calls.

    Args:
        module: in the hands of a trainer.
        pictures: uint8 [B, 3, H, W].
    """

    def __init__(self, module: TokenizerModule, pictures: Tensor) -> None:
        self.module, self.objective = module, module.objective
        self.real = module.prepare((pictures.to(module.device), None))
        generator = seeding.generator(module.seed, "benchmark", device=module.device)
        self.draws = seeding.BatchDraws(generator)

    def forward(self) -> None:
        self.fake = self.module.reconstruct(self.real, self.draws)

    def backward(self) -> None:
        made = [self.fake.images, self.fake.semantics, self.fake.posterior.mean]
        made = [tensor for tensor in made if tensor is not None and tensor.requires_grad]
        torch.autograd.backward(made, [torch.ones_like(tensor) for tensor in made])

    def terms(self, step: int = ALL) -> None:
        """The terms and the discriminator's loss, and their gradients down to what is judged.

        A scale of 1 stands for the last convolution, which the adaptive weight asks for.
        """
        scale = nn.Parameter(torch.ones((), device=self.module.device))
        fake = Reconstruction(
            apart(self.fake.images) * scale,
            None if self.fake.semantics is None else apart(self.fake.semantics),
            replace(self.fake.posterior, mean=apart(self.fake.posterior.mean)),
        )
        loss = self.objective.autoencoder_loss(self.real, fake, scale, step, self.draws)
        loss.total.backward()
        if step == ALL:
            self.active = [name for name in loss.terms if name not in NO_TERMS]
        if self.objective.adversarial(step):
            loss = self.objective.discriminator_loss(self.real, fake.images, self.draws)
            loss.total.backward()

    def other_terms(self) -> None:
        self.terms(NO_ADVERSARY)

    def update(self) -> None:
        """Both optimizers and EMA, with the gradients that the other parts have left."""
        adversarial = self.objective.discriminator is not None
        self.module.apply_gradients(self.module.learning_rate, adversarial)

    def measure(self, warmup: int, rounds: int) -> dict[str, np.ndarray]:
        """The cost of each part of an update, `COST`; of its time the median over `rounds`.

        `launching` is then the share of the time in which the program told the device what to do.
        """
        held = frozen_networks(self.objective)
        recorded = {name: Recorded(getattr(*place)) for name, place in held.items()}
        for name, place in held.items():
            setattr(*place, recorded[name])
        self.forward()
        self.terms()
        for network in recorded.values():
            network.still = True
        adversary = self.objective.discriminator is not None
        calls: dict[str, Callable[[], None]] = {
            "autoencoder_forward": self.forward,
            "autoencoder_backward": self.backward,
            **{name: network.repeat for name, network in recorded.items()},
            **({"discriminator": self.terms} if adversary else {}),
            "other_terms": self.other_terms,
            "optimizers_and_ema": self.update,
        }
        for _ in range(warmup):
            for call in calls.values():
                call()
        works = []
        for call in calls.values():
            with peak.counted() as work:
                call()
            works.append(work)
        times = [[peak.timed(c, self.module.device) for c in calls.values()] for _ in range(rounds)]
        for name, place in held.items():
            setattr(*place, recorded[name].network)
        seconds, told = np.median(times, axis=0).T
        self.launching = told.sum() / seconds.sum()
        split = {
            name: np.array([taken, work.flops, work.traffic])
            * (1 if name == "optimizers_and_ema" else self.module.accumulate)
            for name, taken, work in zip(calls, seconds, works, strict=True)
        }
        if adversary:
            split["discriminator"] = split["discriminator"] - split["other_terms"]
        return split


def apart(tensor: Tensor) -> Tensor:
    """The same values, where a graph begins."""
    return tensor.detach().requires_grad_()
