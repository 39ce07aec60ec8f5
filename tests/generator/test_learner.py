from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from common.errors import UserError
from common.seeding import BatchDraws, generator, stream
from generator.model import Generator
from generator.objective import Draws, training_loss

from .trained import SIZES, Tokens, build, network, noisy

SILENT = dataclasses.replace(SIZES, attn_dropout=0.0, proj_dropout=0.0)


def gradients(trainer, batches, step=0):
    """Of an update, which is not made."""
    found = {}

    def make(loss, rate):
        for name, parameter in trainer.learner.model.named_parameters():
            found[name], parameter.grad = parameter.grad, None
        return loss

    trainer.learner.updates.make = make
    losses, _ = trainer.learner.update(batches, step, 1e-2)
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
        torch.testing.assert_close(value, b[name], atol=1e-6, rtol=1e-4, msg=name)
        # nobody has to lose its class in one batch
        assert value.any() or name == "unconditional", name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradients_of_all_batches_are_averaged(tmp_path, accumulate):
    trainer = build(tmp_path, sizes=SILENT, accumulate=accumulate, batch_size=2)
    batches = list(itertools.islice(trainer.loader, accumulate))
    assert_close(gradients(trainer, batches)[0], expected(batches))


def test_only_chosen_columns_are_trained_and_all_are_told(tmp_path):
    trainer = build(tmp_path, sizes=SILENT, train_columns="1,3-4")
    batches = list(trainer.loader)[:1]
    found, losses = gradients(trainer, batches)
    assert_close(found, expected(batches, columns=[1, 3, 4]))
    assert list(losses) == [0, 1, 2, 3, 4]
    whole = gradients(build(tmp_path, sizes=SILENT), batches)[1]
    assert losses == whole
    with pytest.raises(UserError, match="--train_columns: found '5' in '5', expected columns"):
        build(tmp_path, train_columns="5")


def test_without_shifts_all_positions_start_at_zero(tmp_path):
    trainer = build(tmp_path, sizes=SILENT, shift_num=1)
    batches = list(trainer.loader)[:1]
    shifts = []
    hidden = trainer.learner.model.hidden

    def watched(tokens, memory, shift=0):
        shifts.append(shift)
        return hidden(tokens, memory, shift)

    trainer.learner.model.hidden = watched
    for step in range(20):
        gradients(trainer, batches, step)
    assert set(shifts) == {0}
    assert_close(gradients(trainer, batches)[0], expected(batches, shift_num=1))
    with_shifts = build(tmp_path, sizes=SILENT, shift_num=4)
    with_shifts.learner.model.hidden = lambda tokens, memory, shift: (
        shifts.append(shift) or Generator.hidden(with_shifts.learner.model, tokens, memory, shift)
    )
    for step in range(40):
        gradients(with_shifts, batches, step)
    assert set(shifts) == {0, 1, 2, 3}


def test_runs_are_trained_as_whole_images(tmp_path):
    """No column of a run sees what lies before it, and positions start anew."""
    trainer = build(tmp_path, sizes=SILENT, subsequence=2)
    seen = []
    trainer.learner.loss_module.forward = lambda tokens, labels, draws: (
        seen.append(tokens) or type(trainer.learner.loss_module).forward(
            trainer.learner.loss_module, tokens, labels, draws)
    )  # fmt: skip
    dataset = Tokens()
    trainer.learner.tokenise = lambda batch, draws: batch
    _, losses = gradients(trainer, list(trainer.loader)[:1])
    (runs,) = seen
    assert runs.shape == (4, 2, 3) and set(losses) <= set(range(5))
    pairs = {tuple(image[i : i + 2].flatten().tolist())
             for image in dataset.tokens for i in range(4)}  # fmt: skip
    assert all(tuple(run.flatten().tolist()) in pairs for run in runs)
    with pytest.raises(UserError, match="--subsequence: found 6, but images have 5 columns"):
        build(tmp_path, subsequence=6)


def test_full_causal_attention_trains(tmp_path):
    """Column 4 then sees column 0, which a window of one column in two layers does not reach."""
    reached = {}
    for window in (1, 0):
        sizes = dataclasses.replace(SILENT, window=window)
        trainer = build(tmp_path / str(window), sizes=sizes, epochs=2)
        trainer.run()
        model = trainer.learner.model.eval()
        tokens = torch.randn(1, 4, 3, requires_grad=True)
        model.hidden(tokens, model.read_classes(torch.tensor([0])))[:, 4].sum().backward()
        reached[window] = bool(tokens.grad[0, 0].any())
    assert reached == {1: False, 0: True}


def test_recomputed_layers_have_the_same_gradients(tmp_path):
    """Dropout among it."""
    found = []
    for recompute in (False, True):
        trainer = build(tmp_path, grad_checkpointing=recompute)
        found.append(gradients(trainer, list(trainer.loader)[:1]))
    assert_close(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1])


def test_bf16_is_near_float32_and_keeps_its_weights(tmp_path):
    found = []
    for precision in ("fp32", "bf16"):
        trainer = build(tmp_path, sizes=SILENT, precision=precision)
        found.append(gradients(trainer, list(trainer.loader)[:1])[1])
        assert {p.dtype for p in trainer.learner.model.parameters()} == {torch.float32}
    assert found[0] != found[1]
    assert list(found[1].values()) == pytest.approx(list(found[0].values()), rel=2e-2)


@pytest.mark.long
def test_a_compiled_model_trains_the_same(tmp_path):
    """All layers share what is compiled, and weights keep their names."""
    sizes = dataclasses.replace(SILENT, depth=4)
    plain = build(tmp_path / "plain", sizes=sizes)
    plain.run()
    counters.clear()
    fast = build(tmp_path / "fast", sizes=sizes, compile=True)
    fast.run()
    assert counters["stats"]["unique_graphs"] <= 6
    states = [t.learner.updates.state() for t in (fast, plain)]
    for key in ("model", "model_ema"):
        for name, value in states[1][key].items():
            torch.testing.assert_close(states[0][key][name], value, rtol=1e-2, atol=1e-3)
