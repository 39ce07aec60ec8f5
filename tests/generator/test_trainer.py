from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import signal
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from common import checkpoint
from common.data.folders import ImageFolder
from common.errors import UserError
from common.plots import read_long
from common.seeding import BatchDraws, generator, stream
from common.signals import Preempted
from generator.model import Generator
from generator.objective import Draws
from generator.trainer import LAST, PATIENCE, parameter_groups, random_runs

from .plain import training_loss
from .trained import SIZES, Tokens, assert_same_state, build, network, noisy

SILENT = dataclasses.replace(SIZES, attn_dropout=0.0, proj_dropout=0.0)


def signalling(number, after):
    """Tokens as always, and a signal while the update number `after` (1 first) is made."""
    calls = itertools.count(1)

    def tokens(batch, draws):
        if next(calls) == after:
            os.kill(os.getpid(), number)
        return noisy(batch, draws)

    return tokens


def resume(folder, name=LAST, **given):
    """Another beginning, which the checkpoint must replace altogether."""
    trainer = build(folder, weights=5, **given)
    trainer.load(checkpoint.load(folder / name), folder / name)
    return trainer


class TestGoingOn:
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_after_any_update_as_if_unbroken(self, tmp_path, accumulate):
        """Dropout, shifts, class drops and all noise among it; workers read ahead or not."""
        given = {"epochs": 2, "batch_size": 4 // accumulate, "accumulate": accumulate}
        given |= {"dataset": Tokens(17)}
        whole = build(tmp_path / "whole", **given)
        whole.run()
        assert whole.step == 8
        for update in range(1, 8):
            folder, number = tmp_path / str(update), (signal.SIGTERM, signal.SIGINT)[update % 2]
            tokens = signalling(number, accumulate * update)
            broken = build(folder, tokenise=tokens, workers=update % 2, **given)
            with pytest.raises(Preempted):
                broken.run()
            assert broken.step == update
            resumed = resume(folder, **given)
            assert (resumed.epoch, resumed.epoch_updates) == divmod(update, 4)
            resumed.run()
            assert_same_state(resumed, whole)
            logs = [read_long(f / "metrics.csv") for f in (folder, tmp_path / "whole")]
            assert logs[0] == logs[1]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_what_a_kill_left_undone_is_made_up_for(self, tmp_path):
        """Kept checkpoint, evaluation, samples and curves of the epoch that had just ended."""

        def run(folder, **given):
            done = []

            def preview(model, path):
                done.append(path.name)
                path.parent.mkdir(exist_ok=True)
                path.touch()

            evaluate = lambda model: done.append("evaluated") or {0: 1.0}  # noqa: E731
            given |= {"save_freq": 1, "eval_freq": 1, "sample_freq": 1}
            return build(folder, evaluate=evaluate, preview=preview, **given), done

        for epochs in (1, 3):  # in the middle, and at the very end
            folder = tmp_path / str(epochs)
            trainer, _ = run(folder, epochs=epochs)
            save = trainer.save

            def killed(name, save=save):
                save(name)
                if trainer.epoch == epochs:  # noqa: B023
                    raise KeyboardInterrupt

            trainer.save = killed
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
            again, done = run(folder, epochs=epochs)
            again.load(checkpoint.load(folder / LAST), folder / LAST)
            assert again.finished
            again.run()
            assert done == ["evaluated", f"epoch_{epochs:05d}.png"]
            assert (folder / f"checkpoint-ckpt-{epochs}.pth").exists()
            assert (folder / "columns.png").exists()
            assert len(read_long(folder / "metrics.csv")["eval/loss"]) == epochs
            last, done = run(folder, epochs=epochs)
            last.load(checkpoint.load(folder / LAST), folder / LAST)
            last.run()
            assert done == []  # once is enough

    def test_with_another_batch_size_where_whole_updates_are_done(self, tmp_path):
        build(tmp_path, dataset=Tokens(13), max_steps=2).run()  # 8 of 13 images
        for given, place in [({"batch_size": 2}, (0, 4)), ({"batch_size": 8}, (1, 0)),
                             ({"batch_size": 2, "accumulate": 2}, (0, 2))]:  # fmt: skip
            resumed = resume(tmp_path, dataset=Tokens(13), **given)
            assert (resumed.epoch, resumed.epoch_updates, resumed.step) == (*place, 2)
        with pytest.raises(UserError, match="--batch_size"):
            resume(tmp_path, dataset=Tokens(13), batch_size=3)

    def test_with_other_data_between_two_epochs_alone(self, tmp_path):
        build(tmp_path, max_steps=1).run()
        with pytest.raises(UserError, match="stands within one"):
            resume(tmp_path, dataset=Tokens(12))
        build(tmp_path, max_steps=2).run()
        assert resume(tmp_path, dataset=Tokens(12)).epoch == 1

    def test_with_the_rates_and_decay_of_now(self, tmp_path):
        build(tmp_path, max_steps=2).run()
        resumed = resume(tmp_path, weight_decay=0.5, lr=3e-3, warmup_epochs=0)
        groups = resumed.optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
        resumed.run()
        assert [group["lr"] for group in groups] == [3e-3, 3e-3]

    def test_not_from_other_runs(self, tmp_path):
        trainer = build(tmp_path)
        trainer.save("x.pth")
        state = checkpoint.load(tmp_path / "x.pth")
        for changed, message in [
            ({"tokenizer": "xyz"}, "tokenizer 'xyz', found 'abc'"),
            ({"generator": asdict(SIZES) | {"depth": 9}}, "generator"),
        ]:
            with pytest.raises(UserError, match=message):
                trainer.load(state | changed, tmp_path / "x.pth")


def test_a_signal_asks_for_a_checkpoint_and_training_goes_on(tmp_path):
    trainer = build(tmp_path, tokenise=signalling(signal.SIGUSR1, 3), save_last_freq=99)
    steps = []
    trainer.save = lambda name: steps.append((name, trainer.step))
    trainer.run()
    assert steps == [(LAST, 3), (LAST, 6)]


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


def test_unreadable_images_are_told_after_the_epoch(tmp_path, capsys):
    (tmp_path / "data" / "a").mkdir(parents=True)
    for k in range(7):
        Image.new("RGB", (5, 5)).save(tmp_path / "data" / "a" / f"{k}.png")
    (tmp_path / "data" / "a" / "bad.png").write_text("no image")

    def tokens(batch, draws):
        return batch[0].float().mean(1)[..., :3], batch[1]

    build(tmp_path, dataset=ImageFolder(str(tmp_path / "data"), 5), tokenise=tokens).run()
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("bad.png") == 1


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


def expected(batches, step=0, columns=slice(None), shift_num=4):
    """The same by hand."""
    model = network(SILENT)
    for i, batch in enumerate(batches):
        rows = BatchDraws(generator(0, "step", step, i))
        tokens, labels = noisy(batch, rows)
        shift = int(stream(0, "shift", step).integers(shift_num))
        loss = training_loss(model, tokens, labels, Draws.random(tokens, rows, shift))
        (loss[columns].mean() / len(batches)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        close = {"atol": 1e-5 * max(1.0, b[name].abs().max().item()), "rtol": 1e-4}
        torch.testing.assert_close(value, b[name], **close, msg=name)
        # nobody has to lose its class in one batch
        assert value.any() or name == "condition.unconditional", name


class TestUpdates:
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_the_gradients_of_all_batches_are_averaged(self, tmp_path, accumulate):
        more = {"accumulate": accumulate, "batch_size": 2, "grad_clip": 0.0}
        trainer = build(tmp_path, sizes=SILENT, **more)
        batches = list(itertools.islice(trainer.loader, accumulate))
        assert_close(gradients(trainer, batches)[0], expected(batches))

    def test_only_chosen_columns_are_trained_and_all_are_told(self, tmp_path):
        given = {"sizes": SILENT, "grad_clip": 0.0}
        trainer = build(tmp_path, train_columns="1,3-4", **given)
        batches = list(trainer.loader)[:1]
        found, losses = gradients(trainer, batches)
        assert_close(found, expected(batches, columns=[1, 3, 4]))
        assert losses == gradients(build(tmp_path, **given), batches)[1]
        with pytest.raises(UserError, match="--train_columns"):
            build(tmp_path, train_columns="5")

    @pytest.mark.parametrize("shift_num", [1, 4])
    def test_positions_are_shifted(self, tmp_path, shift_num):
        trainer = build(tmp_path, sizes=SILENT, shift_num=shift_num, grad_clip=0.0)
        batches, shifts = list(trainer.loader)[:1], []
        trainer.model.hidden = lambda tokens, context, shift: (
            shifts.append(shift) or Generator.hidden(trainer.model, tokens, context, shift)
        )
        for step in range(30):
            found, _ = gradients(trainer, batches, step)
        assert set(shifts) == set(range(shift_num))
        assert_close(found, expected(batches, 29, shift_num=shift_num))

    def test_runs_are_trained_as_whole_images(self, tmp_path):
        """No column of a run sees what lies before it, and positions start anew."""
        trainer = build(tmp_path, sizes=SILENT, subsequence=2)
        seen, dataset, forward = [], Tokens(), trainer.loss_module.forward
        trainer.loss_module.forward = lambda *given: seen.append(given[0]) or forward(*given)
        trainer.tokens = lambda batch, draws: batch
        _, losses = gradients(trainer, list(trainer.loader)[:1])
        (runs,) = seen
        assert runs.shape == (4, 2, 3) and set(losses) <= set(range(5))
        pairs = {tuple(image[i : i + 2].flatten().tolist())
                 for image in dataset.tokens for i in range(4)}  # fmt: skip
        assert all(tuple(run.flatten().tolist()) in pairs for run in runs)
        with pytest.raises(UserError, match="--subsequence"):
            build(tmp_path, subsequence=6)

    def test_recomputed_layers_have_the_same_gradients(self, tmp_path):
        """Dropout among it."""
        found = []
        for recompute in (False, True):
            trainer = build(tmp_path, grad_checkpointing=recompute)
            found.append(gradients(trainer, list(trainer.loader)[:1]))
        assert_close(found[1][0], found[0][0])

    def test_bf16_is_near_float32_and_keeps_its_weights(self, tmp_path):
        found = []
        for precision in ("fp32", "bf16"):
            trainer = build(tmp_path, sizes=SILENT, precision=precision)
            found.append(gradients(trainer, list(trainer.loader)[:1])[1])
            assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        assert found[0] != found[1]
        assert list(found[1].values()) == pytest.approx(list(found[0].values()), rel=2e-2)

    @pytest.mark.long
    def test_a_compiled_model_trains_the_same(self, tmp_path):
        """All layers share what is compiled, and weights keep their names."""
        sizes = dataclasses.replace(SILENT, depth=4)
        plain = build(tmp_path / "plain", sizes=sizes)
        plain.run()
        counters.clear()
        fast = build(tmp_path / "fast", sizes=sizes, compile=True)
        fast.run()
        assert counters["stats"]["unique_graphs"] <= 6
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(fast.model.state_dict()[name], value, rtol=1e-2, atol=1e-3)

    def test_clipping(self, tmp_path):
        """The norm is told as it was; the largest one allowed is what the weights see."""
        norms = {}
        for clip in (0.0, 1e-3):
            trainer, seen = build(tmp_path, grad_clip=clip), []
            step = trainer.optimizer.step

            def watched(step=step, seen=seen, trainer=trainer):
                squares = [p.grad.square().sum() for p in trainer.model.parameters()]
                seen.append(torch.stack(squares).sum().sqrt().item())
                step()

            trainer.optimizer.step = watched
            _, norm = trainer.train_step(list(trainer.loader)[:1], 1e-2)
            norms[clip] = (norm.item(), *seen)
        assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-4) and norms[0.0][0] > 0.1
        assert norms[1e-3] == pytest.approx((norms[0.0][0], 1e-3), rel=1e-3)

    def test_weights_that_decay(self):
        model = Generator(SIZES)
        decayed, free = parameter_groups(model, 0.02)
        names = {id(p): name for name, p in model.named_parameters()}
        assert decayed["weight_decay"] == 0.02 and free["weight_decay"] == 0
        assert len(decayed["params"]) + len(free["params"]) == len(names)
        found = {names[id(p)] for p in decayed["params"]}
        assert "layers.0.attention.qkv.weight" in found and "condition.embedding.weight" in found
        assert not any(n.startswith("head.") or n.endswith("bias") or "norm" in n for n in found)


class TestRuns:
    def rows(self, rank=0, world=1):
        return BatchDraws(torch.Generator().manual_seed(0), rank, world)

    def test_they_do_not_depend_on_the_number_of_processes(self):
        tokens = torch.randn(6, 5, 2)
        whole, _ = random_runs(tokens, 2, self.rows())
        for rank in range(3):
            share, _ = random_runs(tokens[rank::3], 2, self.rows(rank, 3))
            assert torch.equal(share, whole[rank::3])


def poisoned(updates, value=float("nan"), seen=None):
    """Tokens that are not finite in some updates (1 first)."""
    calls = itertools.count(1)

    def tokens(batch, draws):
        call = next(calls)
        if seen is not None:
            seen.append(call)
        found, labels = noisy(batch, draws)
        if call in updates:
            found[1, 2, 0] = value
        return found, labels

    return tokens


class TestUpdatesThatAreNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), 1e30])
    def test_they_are_left_out(self, tmp_path, value):
        """To the bit; 1e30 is finite, but its square is not."""
        trainer = build(tmp_path, tokenise=poisoned({3}, value), warmup_epochs=0)
        states, train_step = [], trainer.train_step

        def watched(batches, rate):
            found = train_step(batches, rate)
            moments = copy.deepcopy(trainer.optimizer.state_dict()["state"])
            states.append((copy.deepcopy(trainer.model.state_dict()), moments))
            return found

        trainer.train_step = watched
        trainer.run()
        for name, weights in states[2][0].items():
            assert torch.equal(weights, states[1][0][name]) and weights.isfinite().all()
        assert any(not torch.equal(v, states[2][0][k]) for k, v in states[3][0].items())
        for index, moments in states[2][1].items():
            for key, moment in moments.items():
                assert torch.equal(moment, states[1][1][index][key])
        skipped = read_long(tmp_path / "metrics.csv")["train/skipped"]
        assert list(skipped.values()) == [0, 0, 1, 1, 1, 1]

    def test_too_many_in_a_row_end_the_run(self, tmp_path):
        """The last checkpoint is the one before; nothing moves until the training looks."""
        seen = []
        bad = range(5, 5 + PATIENCE)
        trainer = build(tmp_path, tokenise=poisoned(bad, seen=seen), epochs=99, log_freq=7,
                        save_steps=3, save_last_freq=99)  # fmt: skip
        with pytest.raises(UserError, match="not finite in 10 updates in a row"):
            trainer.run()
        assert len(seen) in (
            14,
            15,
        )  # the next time that a checkpoint or an entry of the log is due
        state = checkpoint.load(tmp_path / LAST)
        assert state["step"] == 12 and state["skipped"] == state["skipped_in_a_row"] == 8
        resumed = resume(tmp_path)
        assert int(resumed.skipped) == int(resumed.skipped_in_a_row) == 8

    def test_nothing_moves_after_the_limit(self, tmp_path):
        tokens = poisoned(range(2, 2 + PATIENCE))
        trainer = build(tmp_path, tokenise=tokens, epochs=99, log_freq=99)
        batches = list(trainer.loader)
        for step in range(20):
            trainer.train_step(batches[:1], 1e-2)
            if step == 0:
                before = copy.deepcopy(trainer.model.state_dict())
        assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


class Waiting(TorchDispatchMode):
    """Collects what would make the program wait for a GPU."""

    READS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in self.READS or any(i.dtype is torch.bool for i in indices if i is not None):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [{}, {"subsequence": 2}, {"train_columns": "0,2-3"}])
def test_an_update_never_waits_for_the_device(tmp_path, given):
    trainer = build(tmp_path, **given)
    batches = list(trainer.loader)
    trainer.train_step(batches[:1], 1e-2)  # counters are read once, at the start
    with Waiting() as waiting:
        trainer.train_step(batches[1:], 1e-2)
    assert waiting.found == []
    with Waiting() as waiting:
        trainer.check()
    assert waiting.found
