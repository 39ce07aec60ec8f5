from __future__ import annotations

import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.logger import MetricLogger
from common.seeding import BatchDraws, generator
from generator.evaluate import ColumnLosses, Evaluation, Few, parse_columns, save_column_curves
from generator.objective import Draws

from .plain import training_loss
from .trained import ALONE, Tokens, build, noisy


@pytest.mark.parametrize(
    ("text", "columns"),
    [("all", [0, 1, 2, 3, 4, 5]), ("0-2,5", [0, 1, 2, 5]), ("4, 0 ,4", [0, 4])],
)
def test_columns_of_a_text(text, columns):
    assert parse_columns(text, 6) == columns


@pytest.mark.parametrize("text", ["6", "0-6", "3-2", "", "1,", "a", "-1", "1-", "0:3"])
def test_texts_that_name_no_columns(text):
    with pytest.raises(UserError, match="--train_columns"):
        parse_columns(text, 6)


def test_mean_losses():
    losses = ColumnLosses(3, torch.device("cpu"))
    losses.add(torch.tensor([[[1.0, 2, 3]], [[3.0, 4, 5]]]))  # two draws of one image
    losses.add(torch.tensor([[[4.0, 6, 7]]]))
    assert losses.means() == {0: 3.0, 1: 4.5, 2: 5.5}


def test_mean_losses_of_runs():
    losses = ColumnLosses(4, torch.device("cpu"))
    draws = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [5.0, 6.0]]])  # [2, 2, 2]
    losses.add(draws, torch.tensor([[0, 1], [1, 2]]))
    assert losses.means() == {0: 1.0, 1: (2 + 4) / 2, 2: 5.0}


@pytest.mark.parametrize("measured", [False, True])
def test_the_plot_shows_what_there_is(tmp_path, measured):
    logs = MetricLogger(tmp_path)
    for step in range(1, 4):
        logs.scalars(step, {"train/loss": 1 / step, "columns/loss_00": 1.0, "columns/loss_01": 2.0})
    if measured:
        logs.scalars(3, {"eval/loss": 1.0, "eval_columns/loss_00": 1.0})
    logs.close()
    save_column_curves(tmp_path / "metrics.csv", tmp_path / "columns.png")
    with Image.open(tmp_path / "columns.png") as plot:
        assert plot.height > (900 if measured else 300) > plot.height / 3


def evaluation(**given):
    settings = {"dataset": Tokens(), "count": 9, "batch_size": 4, "process": ALONE}
    return Evaluation(**{**settings, "tokens": noisy, "seed": 3, "repeats": 2, **given})


@pytest.fixture
def model(tmp_path):
    """Of a few updates, so that columns differ."""
    trainer = build(tmp_path, warmup_epochs=0)
    trainer.run()
    return trainer.ema.model


def test_every_column_of_whole_batches_is_measured(model):
    """Eight of ten images, evenly spread, in two batches; the same each time."""
    found = evaluation()(model)
    dataset, expected = Tokens(), torch.zeros(5)
    for i in range(2):
        items = [dataset[(4 * i + k) * 10 // 8] for k in range(4)]
        rows = BatchDraws(generator(3, "evaluation", i))
        batch = torch.stack([t for t, _ in items]), torch.tensor([label for _, label in items])
        tokens, labels = noisy(batch, rows)
        draws = Draws.random(tokens, rows, drop_probability=0.0, repeats=2)
        with torch.no_grad():
            expected += training_loss(model, tokens, labels, draws) / 2
    assert list(found.values()) == pytest.approx(expected.tolist())
    assert found == evaluation()(model)


def test_images_keep_their_crop():
    """An item is asked for by its own number, which decides crop and flip."""
    few = Few(list(range(100, 110)), 4)
    draws = Evaluation(Tokens(), 4, 4, ALONE, noisy, 0, 1).loader.sampler
    for _ in range(2):
        assert [few[draw] for draw in draws] == [100, 102, 105, 107]
        draws.set_epoch(draws.epoch + 1)
