from __future__ import annotations

import os
import signal
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from common import checkpoint
from common.data.folders import ImageFolder
from common.errors import UserError
from common.plots import read_long
from common.signals import Interrupted
from generator.training import LAST, read_state

from .trained import CONFIG, SIZES, Tokens, assert_same_state, build, noisy


def signalling(number, after):
    """Tokens as always, and a signal while the update number `after` (1 first) is made."""
    calls = 0

    def tokenise(batch, draws):
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), number)
        return noisy(batch, draws)

    return tokenise


def resume(folder, name=LAST, **given):
    """Another beginning, which the checkpoint must replace altogether."""
    trainer = build(folder, weights=5, **given)
    trainer.load(read_state(folder / name), folder / name)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_killed_after_any_update_goes_on_as_if_unbroken(tmp_path, accumulate):
    """Dropout, shifts, class drops and all noise among it; workers read ahead or not."""
    given = {"epochs": 2, "batch_size": 4 // accumulate, "accumulate": accumulate}
    whole = build(tmp_path / "whole", dataset=Tokens(17), **given)
    whole.run()
    assert whole.step == 8
    for update in range(1, 8):
        folder = tmp_path / str(update)
        tokenise = signalling(signal.SIGTERM, accumulate * update)
        broken = build(folder, dataset=Tokens(17), tokenise=tokenise, workers=update % 2, **given)
        with pytest.raises(Interrupted):
            broken.run()
        assert broken.step == update
        resumed = resume(folder, dataset=Tokens(17), **given)
        assert (resumed.epoch, resumed.epoch_updates) == divmod(update, 4)
        resumed.run()
        assert_same_state(resumed, whole)
        logs = [read_long(f / "metrics.csv") for f in (folder, tmp_path / "whole")]
        assert logs[0] == logs[1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_asks_for_a_checkpoint_and_training_goes_on(tmp_path, capsys):
    trainer = build(tmp_path, tokenise=signalling(signal.SIGUSR1, 3), save_last_freq=99)
    steps = []
    trainer.save = lambda name: steps.append((name, trainer.step))
    trainer.run()
    assert steps == [(LAST, 3), (LAST, 6)]
    assert f"checkpoint after 3 updates: {tmp_path / LAST}" in capsys.readouterr().out


def test_checkpoints_come_when_they_are_due(tmp_path):
    def saved(**given):
        trainer = build(tmp_path, **given)
        found = []
        trainer.save = lambda name: found.append((name.removeprefix("checkpoint-"), trainer.step))
        trainer.run()
        return found

    last = "last.pth"
    assert saved() == [(last, 2), (last, 4), (last, 6)]
    assert saved(save_last_freq=2) == [(last, 4), (last, 6)]
    assert saved(save_last_freq=9, save_steps=4) == [(last, 4), (last, 6)]
    assert saved(save_last_freq=9, save_freq=2) == [("ckpt-2.pth", 4), (last, 6)]
    assert saved(max_steps=3) == [(last, 2), (last, 3)]


def test_more_steps_than_there_were_at_first(tmp_path):
    whole = build(tmp_path / "whole")
    whole.run()
    build(tmp_path / "parts", max_steps=3).run()
    resumed = resume(tmp_path / "parts")
    assert resumed.step == 3
    resumed.run()
    assert_same_state(resumed, whole)


def test_a_run_trains_and_its_average_follows(tmp_path):
    trainer = build(tmp_path)
    raw, average = trainer.learner.model, trainer.learner.updates.ema.model
    start = [p.clone() for p in raw.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, average.parameters(), strict=True))
    trainer.run()
    assert int(trainer.learner.updates.ema.updates) == trainer.step == 6
    moved = [
        (a, b, c)
        for a, b, c in zip(start, average.parameters(), raw.parameters(), strict=True)
        if not torch.equal(a, c)
    ]
    assert moved and all(0 < (b - a).norm() < 2 * (c - a).norm() for a, b, c in moved)


def test_files_and_logs(tmp_path):
    trainer = build(tmp_path, save_freq=2)
    trainer.run()
    assert {p.name for p in tmp_path.glob("*.p*")} == {LAST, "checkpoint-ckpt-2.pth", "columns.png"}
    state = checkpoint.load(tmp_path / LAST)
    assert (state["epoch"], state["epoch_images"], state["step"]) == (3, 0, 6)
    assert state["training"] == asdict(replace(CONFIG, save_freq=2)) and state["tokenizer"] == "abc"
    curves = read_long(tmp_path / "metrics.csv")
    assert {f"columns/loss_{i:02d}" for i in range(5)} < curves.keys()
    assert list(curves["train/lr"].values()) == pytest.approx([0, 5e-3] + [1e-2] * 4)
    columns = [curves[f"columns/loss_{i:02d}"][1] for i in range(5)]
    assert curves["train/loss"][1] == pytest.approx(sum(columns) / 5)
    assert set(curves["train/skipped"].values()) == {0}


def test_a_run_that_is_done_has_nothing_left(tmp_path):
    build(tmp_path).run()
    before = (tmp_path / LAST).stat().st_mtime_ns
    again = resume(tmp_path)
    assert again.finished
    again.run()
    assert again.step == 6 and (tmp_path / LAST).stat().st_mtime_ns == before


def test_another_batch_size_goes_on_where_whole_updates_are_done(tmp_path):
    trainer = build(tmp_path, dataset=Tokens(13), max_steps=2)
    trainer.run()  # 8 of 13 images
    for given, place in [({"batch_size": 2}, (0, 4)), ({"batch_size": 2, "accumulate": 2}, (0, 2)),
                         ({"batch_size": 8}, (1, 0))]:  # fmt: skip
        resumed = resume(tmp_path, dataset=Tokens(13), **given)
        assert (resumed.epoch, resumed.epoch_updates, resumed.step) == (*place, 2)
    with pytest.raises(UserError, match=r"--batch_size: found updates of 3 images, but .* after 8"):
        resume(tmp_path, dataset=Tokens(13), batch_size=3)


def test_other_data_goes_on_between_two_epochs_alone(tmp_path):
    build(tmp_path, max_steps=1).run()
    with pytest.raises(UserError, match="trained with data images 10, found 12 now; this may"):
        resume(tmp_path, dataset=Tokens(12))
    build(tmp_path, max_steps=2).run()
    assert resume(tmp_path, dataset=Tokens(12)).epoch == 1


def test_rates_and_decay_are_those_of_now(tmp_path):
    build(tmp_path, max_steps=2).run()
    resumed = resume(tmp_path, weight_decay=0.5, lr=3e-3, warmup_epochs=0)
    groups = resumed.learner.updates.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    resumed.run()
    assert [group["lr"] for group in groups] == [3e-3, 3e-3]


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    trainer = build(tmp_path)
    trainer.save("x.pth")
    path = tmp_path / "x.pth"
    state = checkpoint.load(path)
    for changed, message in [
        ({"tokenizer": "xyz"}, "was trained with tokenizer 'xyz', found 'abc' now"),
        ({"generator": asdict(SIZES) | {"depth": 9}}, "trained with generator depth 9, found 2"),
    ]:
        with pytest.raises(UserError, match=message):
            trainer.load(state | changed, path)
    trainer.header = {"class_names": ["a", "b"]}
    for names, message in [(["a", "c"], "class_names 1 'c', found 'b'"),
                           (["a"], "class_names number 1, found 2 now")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            trainer.load(state | {"class_names": names}, path)
    del state["optimizer"], state["step"]
    checkpoint.save(path, state)
    with pytest.raises(UserError, match="has no optimizer, step; expected a checkpoint that train"):
        read_state(path)


def test_unreadable_pictures_are_told_after_the_epoch(tmp_path, capsys):
    (tmp_path / "data" / "a").mkdir(parents=True)
    for k in range(7):
        Image.new("RGB", (5, 5)).save(tmp_path / "data" / "a" / f"{k}.png")
    (tmp_path / "data" / "a" / "bad.png").write_text("no picture")

    def tokenise(batch, draws):
        return batch[0].float().mean(1)[..., :3], batch[1]

    build(tmp_path, dataset=ImageFolder(str(tmp_path / "data"), 5), tokenise=tokenise).run()
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("1 of 8 images could not be read") == 1


def test_measurements_and_pictures_use_the_average(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(("evaluate", model))
        return {0: 1.0, 3: 2.0}

    def preview(model, path):
        seen.append((path.name, model))

    given = {"evaluate": evaluate, "preview": preview, "eval_freq": 2, "sample_freq": 1}
    trainer = build(tmp_path, **given)
    trainer.run()
    names = ["epoch_00001.png", "evaluate", "epoch_00002.png", "evaluate", "epoch_00003.png"]
    assert [name for name, _ in seen] == names
    assert all(model is trainer.learner.updates.ema.model for _, model in seen)
    curves = read_long(tmp_path / "metrics.csv")
    assert curves["eval/loss"] == {4: 1.5, 6: 1.5} and curves["eval_columns/loss_03"] == {
        4: 2,
        6: 2,
    }
