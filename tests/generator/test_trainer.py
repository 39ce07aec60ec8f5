import copy
import itertools
import os
import signal

import pytest
import torch

from common import checkpoint
from common.errors import Preempted, UserError
from common.plots import read_long
from common.seeding import BatchDraws, generator, stream
from generator import trainer as module
from generator.model import Generator
from generator.objective import Draws
from generator.trainer import LAST, PATIENCE

from .plain import training_loss
from .trained import SILENT, Tokens, assert_same_state, build, network, noisy, resume


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take longer than these trainings."""
    monkeypatch.setattr(module, "save_column_curves", lambda log, path: path.touch())


def signalling(number, after):
    """Tokens as always, and a signal while the update number `after` (1 first) is made."""
    calls = itertools.count(1)

    def tokens(batch, draws):
        if next(calls) == after:
            os.kill(os.getpid(), number)
        return noisy(batch, draws)

    return tokens


@pytest.mark.parametrize(("accumulate", "updates"), [(1, range(1, 6)), (2, (2, 3))])
def test_a_run_goes_on_after_any_update_as_if_unbroken(tmp_path, accumulate, updates):
    """Dropout, shifts, class drops and all noise among it; workers read ahead or not."""
    given = {"epochs": 2, "batch_size": 4 // accumulate, "accumulate": accumulate}
    given |= {"dataset": Tokens(13)}
    whole = build(tmp_path / "whole", **given)
    whole.run()
    assert whole.step == 6
    for update in updates:
        folder, number = tmp_path / str(update), (signal.SIGTERM, signal.SIGINT)[update % 2]
        tokens = signalling(number, accumulate * update)
        broken = build(folder, tokenise=tokens, workers=update == 2, **given)
        with pytest.raises(Preempted):
            broken.run()
        assert broken.step == update
        resumed = resume(folder, **given)
        assert (resumed.epoch, resumed.epoch_updates) == divmod(update, 3)
        resumed.run()
        assert_same_state(resumed, whole)
        logs = [read_long(f / "metrics.csv") for f in (folder, tmp_path / "whole")]
        assert logs[0] == logs[1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_a_kill_left_undone_is_made_up_for(tmp_path, monkeypatch, epochs):
    """Kept checkpoint, evaluation, samples and curves of the epoch that had just ended; once."""
    done, kills = [], [epochs - 1]

    def preview(model, path):
        if len(done) == kills[0]:
            raise KeyboardInterrupt
        done.append(path.name)

    monkeypatch.setattr(module.Trainer, "evaluate", lambda _: {0: 1.0})
    given = {"preview": preview, "epochs": epochs, "save_freq": 1, "eval_freq": 1, "sample_freq": 1}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, **given).run()
    assert not (tmp_path / f"checkpoint-ckpt-{epochs}.pth").exists()
    kills[0] = epochs
    for _ in range(2):
        again = (
            resume(tmp_path, **given) if (tmp_path / LAST).exists() else build(tmp_path, **given)
        )
        again.run()
    assert done == [f"epoch_{k:05d}.png" for k in range(1, epochs + 1)]
    assert (tmp_path / f"checkpoint-ckpt-{epochs}.pth").exists()
    assert (tmp_path / "columns.png").exists()
    assert len(read_long(tmp_path / "metrics.csv")["eval/loss"]) == epochs


def test_what_may_change_when_a_run_goes_on(tmp_path):
    """Batch sizes after whole updates, data between two epochs, rates and decay."""
    build(tmp_path, dataset=Tokens(13), max_steps=2).run()  # 8 of 13 images
    for given, place in [({"batch_size": 2}, (0, 4)), ({"batch_size": 8}, (1, 0)),
                         ({"batch_size": 2, "accumulate": 2}, (0, 2))]:  # fmt: skip
        resumed = resume(tmp_path, dataset=Tokens(13), **given)
        assert (resumed.epoch, resumed.epoch_updates, resumed.step) == (*place, 2)
    for given in [{"dataset": Tokens(13), "batch_size": 3}, {"dataset": Tokens(12)},
                  {"dataset": Tokens(13), "sizes": SILENT}]:  # fmt: skip
        with pytest.raises(UserError):
            resume(tmp_path, **given)
    build(tmp_path, max_steps=2).run()
    resumed = resume(tmp_path, dataset=Tokens(12), weight_decay=0.5, lr=3e-3, warmup_epochs=0)
    groups = resumed.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0] and resumed.epoch == 1
    resumed.run()
    assert [group["lr"] for group in groups] == [3e-3, 3e-3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [("last", 2), ("last", 4), ("last", 6)]),
        ({"save_last_freq": 2}, [("last", 4), ("last", 6)]),
        ({"save_last_freq": 9, "save_steps": 4}, [("last", 4), ("last", 6)]),
        ({"save_last_freq": 9, "save_freq": 2}, [("ckpt-2", 4), ("last", 6)]),
        ({"max_steps": 3}, [("last", 2), ("last", 3)]),
        (
            {"save_last_freq": 9, "tokenise": signalling(signal.SIGUSR1, 3)},
            [("last", 3), ("last", 6)],
        ),
    ],
)
def test_checkpoints_come_when_they_are_due(tmp_path, given, expected):
    trainer, found = build(tmp_path, **given), []
    trainer.save = lambda name: found.append((name[len("checkpoint-") : -4], trainer.step))
    trainer.run()
    assert found == expected


def gradients(trainer, batches, step=0):
    """Of an update, which is not made."""
    found = {}
    trainer.step = step

    def keep():
        for name, parameter in trainer.model.named_parameters():
            found[name] = parameter.grad.clone()

    make, trainer.optimizer.step = trainer.optimizer.step, keep
    average, trainer.ema.update = trainer.ema.update, lambda model: None
    losses, _ = trainer.train_step(batches, 1e-2)
    trainer.optimizer.step, trainer.ema.update = make, average
    return found, losses.means()


def expected_gradients(batches, step, columns=slice(None), shift_num=4):
    """The same by hand."""
    model = network(SILENT)
    for i, batch in enumerate(batches):
        rows = BatchDraws(generator(0, "step", step, i))
        tokens, labels = noisy(batch, rows)
        shift = int(stream(0, "shift", step).integers(shift_num))
        loss = training_loss(model, tokens, labels, Draws.random(tokens, rows, shift, 0.1, 4))
        (loss[columns].mean() / len(batches)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        close = {"atol": 1e-5 * max(1.0, b[name].abs().max().item()), "rtol": 1e-4}
        torch.testing.assert_close(value, b[name], **close, msg=name)
        # nobody has to lose its class in one batch
        assert value.any() or name == "condition.unconditional", name


@pytest.mark.parametrize(
    ("given", "by_hand"),
    [
        ({}, {}),
        ({"accumulate": 2, "batch_size": 2}, {}),
        ({"train_columns": "1,3-4"}, {"columns": [1, 3, 4]}),
        ({"shift_num": 1}, {"shift_num": 1}),
        ({"grad_checkpointing": True}, {}),
    ],
)
def test_the_gradients_by_hand(tmp_path, given, by_hand):
    """All columns are told, whichever are trained; positions are shifted by as much as may be."""
    trainer = build(tmp_path, sizes=SILENT, grad_clip=0.0, **given)
    batches, shifts = list(itertools.islice(trainer.loader, trainer.config.accumulate)), []
    trainer.model.hidden = lambda tokens, context, shift: (
        shifts.append(shift) or Generator.hidden(trainer.model, tokens, context, shift)
    )
    for step in range(30):
        found, losses = gradients(trainer, batches, step)
    assert_close(found, expected_gradients(batches, 29, **by_hand))
    assert set(losses) == set(range(5)) and set(shifts) == set(range(given.get("shift_num", 4)))


def test_runs_are_trained_as_whole_images(tmp_path):
    """No column of a run sees what lies before it, and positions start anew."""
    trainer = build(tmp_path, sizes=SILENT, subsequence=2)
    seen, forward = [], trainer.loss_module.forward
    trainer.loss_module.forward = lambda *given: seen.append(given[0]) or forward(*given)
    trainer.tokens = lambda batch, draws: batch
    _, losses = gradients(trainer, list(trainer.loader)[:1])
    (runs,) = seen
    assert runs.shape == (4, 2, 3) and set(losses) <= set(range(5))
    pairs = {tuple(image[i : i + 2].flatten().tolist())
             for image in Tokens().tokens for i in range(4)}  # fmt: skip
    assert all(tuple(run.flatten().tolist()) in pairs for run in runs)


def poisoned(updates, value=float("nan")):
    """Tokens that are not finite in some updates (1 first)."""
    calls = itertools.count(1)

    def tokens(batch, draws):
        found, labels = noisy(batch, draws)
        if next(calls) in updates:
            found[1, 2, 0] = value
        return found, labels

    return tokens


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_updates_that_are_not_finite_are_left_out(tmp_path, value):
    """To the bit; 1e30 is finite, but its square is not."""
    trainer = build(tmp_path, tokenise=poisoned({3}, value), warmup_epochs=0)
    states, train_step = [], trainer.train_step

    def watched(batches, rate):
        found = train_step(batches, rate)
        moments = trainer.optimizer.state_dict()["state"]
        states.append(copy.deepcopy([trainer.model.state_dict(), *moments.values()]))
        return found

    trainer.train_step = watched
    trainer.run()
    for before, after in zip(states[1], states[2], strict=True):
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(not torch.equal(v, states[2][0][k]) for k, v in states[3][0].items())
    skipped = read_long(tmp_path / "metrics.csv")["train/skipped"]
    assert list(skipped.values()) == [0, 0, 1, 1, 1, 1]


def test_too_many_in_a_row_end_the_run(tmp_path):
    """The last checkpoint is the one before; nothing moves until the training looks."""
    bad = poisoned(range(5, 5 + PATIENCE))
    trainer = build(tmp_path, tokenise=bad, epochs=99, log_freq=7, save_steps=3, save_last_freq=99)
    with pytest.raises(UserError, match="not finite in 10 updates in a row"):
        trainer.run()
    state = checkpoint.load(tmp_path / LAST)
    assert state["step"] == 12 and state["skipped"] == state["skipped_in_a_row"] == 8
    resumed = resume(tmp_path)
    assert int(resumed.skipped) == int(resumed.skipped_in_a_row) == 8

    trainer = build(tmp_path, tokenise=poisoned(range(2, 2 + PATIENCE)))
    batches = list(trainer.loader)
    trainer.train_step(batches[:1], 1e-2)
    before = copy.deepcopy(trainer.model.state_dict())
    for _ in range(PATIENCE + 5):
        trainer.train_step(batches[:1], 1e-2)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
