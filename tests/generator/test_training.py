from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common import checkpoint, distributed
from common.curves import read_long
from common.datasets import ImageFolder
from common.distributed import Process
from common.errors import UserError
from common.sampler import DrawSampler
from generator.model import Generator, GeneratorConfig
from generator.training import Trainer, TrainingConfig, parameter_groups

SIZES = GeneratorConfig(16, 2, 2, 3, 4, 3, head_width=8, head_depth=1)
ALONE = Process(0, 0, 1, torch.device("cpu"))
CONFIG = TrainingConfig(
    lr=1e-2, epochs=3, warmup_epochs=1, ema_rate=0.9, shift_num=4, log_freq=1, save_freq=2
)


class Tokens:
    """Ten images of five columns."""

    class_names = ("a", "b", "c", "d")

    def __init__(self):
        self.tokens = torch.randn(10, 5, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, draw):
        return self.tokens[draw.index], draw.index % 4


def build(folder, config=CONFIG, process=ALONE, batch_size=4, dataset=None, seed=0):
    dataset = dataset or Tokens()
    sampler = DrawSampler(len(dataset), process.rank, process.world, batch_size, config.seed)
    torch.manual_seed(seed)
    model = Generator(SIZES)
    return Trainer(
        model,
        config,
        process,
        DataLoader(dataset, batch_size, sampler=sampler),
        lambda batch, randomness: (batch[0] + torch.randn(batch[0].shape, generator=randomness),
                                   batch[1]),
        folder,
        header={"generator": asdict(SIZES), "tokenizer": "abc"},
    )  # fmt: skip


def until(folder, epochs):
    """The run, interrupted after some epochs."""
    trainer = build(folder)
    while trainer.epoch < epochs:
        trainer.loader.sampler.set_epoch(trainer.epoch)
        for _ in trainer._epoch():
            pass
        trainer.epoch += 1
        trainer._save_due()
    return trainer


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_an_unbroken_one(tmp_path, epochs):
    whole = build(tmp_path / "whole")
    whole.run()
    until(tmp_path / "broken", epochs)
    # another beginning, which the checkpoint must replace altogether
    resumed = build(tmp_path / "broken", seed=5)
    resumed.load(tmp_path / "broken" / "checkpoint-last.pth")
    assert (resumed.epoch, resumed.step, int(resumed.ema.updates)) == (
        epochs,
        2 * epochs,
        2 * epochs,
    )
    resumed.run()
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert_same(resumed.ema.state_dict(), whole.ema.state_dict())
    for index, moments in whole.optimizer.state_dict()["state"].items():
        assert_same(resumed.optimizer.state_dict()["state"][index], moments)


def test_a_run_trains_and_its_average_follows(tmp_path):
    trainer = build(tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    until_first = [p.clone() for p in trainer.ema.model.parameters()]
    trainer.run()
    assert any(not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert int(trainer.ema.updates) == trainer.step == 6
    moved = [
        (start, average, raw)
        for start, average, raw in zip(
            until_first, trainer.ema.model.parameters(), trainer.model.parameters(), strict=True
        )
        if not torch.equal(start, raw)
    ]
    assert moved and all(
        0 < (average - start).norm() < 2 * (raw - start).norm() for start, average, raw in moved
    )


def test_files_and_logs(tmp_path):
    build(tmp_path).run()
    names = {p.name for p in tmp_path.glob("*.pth")}
    assert names == {"checkpoint-last.pth", "checkpoint-ckpt-2.pth"}
    state = checkpoint.load(tmp_path / "checkpoint-last.pth")
    assert (state["epoch"], state["step"], state["tokenizer"]) == (3, 6, "abc")
    assert state["training"] == asdict(CONFIG)
    curves = read_long(tmp_path / "metrics.csv")
    assert {f"columns/loss_{i:02d}" for i in range(5)} < curves.keys()
    assert list(curves["train/lr"].values()) == pytest.approx([0, 5e-3] + [1e-2] * 4)
    assert curves["train/loss"][1] == pytest.approx(2 + 1, rel=0.5)  # velocity 0: noise − data


def test_a_run_that_is_done_has_nothing_left(tmp_path, capsys):
    build(tmp_path).run()
    again = build(tmp_path)
    again.load(tmp_path / "checkpoint-last.pth")
    before = (tmp_path / "checkpoint-last.pth").stat().st_mtime_ns
    again.run()
    assert again.step == 6
    assert (tmp_path / "checkpoint-last.pth").stat().st_mtime_ns == before


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    trainer = build(tmp_path)
    trainer.save("x.pth")
    path = tmp_path / "x.pth"
    state = checkpoint.load(path)
    for changed, message in [
        ({"tokenizer": "xyz"}, "was trained with tokenizer 'xyz', found 'abc' now"),
        ({"generator": asdict(SIZES) | {"depth": 9}}, "trained with generator depth 9, found 2"),
        ({"training": asdict(CONFIG) | {"seed": 8}}, "--seed: found 0, expected 8, with which"),
    ]:
        checkpoint.save(path, state | changed)
        with pytest.raises(UserError, match=message):
            trainer.load(path)
    del state["optimizer"], state["step"]
    checkpoint.save(path, state)
    with pytest.raises(UserError, match="has no optimizer, step; expected a checkpoint that train"):
        trainer.load(path)


def test_weights_that_decay(tmp_path):
    model = Generator(SIZES)
    decayed, free = parameter_groups(model, 0.02)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.02 and free["weight_decay"] == 0
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    found = {names[id(p)] for p in decayed["params"]}
    assert "layers.0.attention.qkv.weight" in found and "class_embedding.weight" in found
    assert not any(n.startswith("head.") or n.endswith("bias") or "norm" in n for n in found)


def test_unreadable_pictures_are_told_after_the_epoch(tmp_path, capsys):
    (tmp_path / "data" / "a").mkdir(parents=True)
    for k in range(7):
        Image.new("RGB", (5, 5)).save(tmp_path / "data" / "a" / f"{k}.png")
    (tmp_path / "data" / "a" / "bad.png").write_text("no picture")
    trainer = build(tmp_path, dataset=ImageFolder(str(tmp_path / "data"), 5))
    trainer.tokenise = lambda batch, randomness: (batch[0].float().mean(1)[..., :3], batch[1])
    trainer.run()
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("1 of 8 pictures could not be read") == 1


def one_of_two(rank, port, folder):
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers |= {"MASTER_PORT": port, "MASTER_ADDR": "localhost"}
    os.environ.update({k: str(v) for k, v in numbers.items()})
    torch.set_num_threads(1)
    with distributed.launch("cpu") as process:
        # the processes begin with different weights, which is put right
        trainer = build(folder / "run", process=process, batch_size=2, seed=rank)
        trainer.run()
        torch.save([trainer.model.state_dict(), trainer.ema.state_dict()], folder / f"{rank}.pth")


def test_two_processes_keep_the_same_weights(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(r, port, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
    saved = checkpoint.load(tmp_path / "run" / "checkpoint-last.pth")
    assert_same(saved["model"], first[0])
    assert len(read_long(tmp_path / "run" / "metrics.csv")["train/loss"]) == saved["step"] == 6
