from __future__ import annotations

import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.logger import Logs
from common.seeding import BatchDraws
from generator.columns import ColumnLosses, parse_columns, random_runs, save_picture


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("0-2,5", [0, 1, 2, 5]),
        ("4, 0 ,4", [0, 4]),
        ("3-3,2-4", [2, 3, 4]),
        ("0-5", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_columns_of_a_text(text, columns):
    assert parse_columns(text, 6) == columns


@pytest.mark.parametrize("text", ["6", "0-6", "3-2", "", "1,", "a", "-1", "1-", "0:3"])
def test_texts_that_name_no_columns(text):
    with pytest.raises(UserError, match=r"--train_columns: found .* expected columns such as"):
        parse_columns(text, 6)


def rows(rank=0, world=1):
    return BatchDraws(torch.Generator().manual_seed(0), rank, world)


def test_runs_are_neighbouring_columns_from_anywhere():
    tokens = torch.arange(3000 * 5 * 2.0).view(3000, 5, 2)
    runs, numbers = random_runs(tokens, 3, rows())
    assert runs.shape == (3000, 3, 2)
    for k in range(50):
        assert torch.equal(runs[k], tokens[k, numbers[k]])
    assert torch.equal(numbers[:, 1:], numbers[:, :-1] + 1)
    shares = numbers[:, 0].bincount(minlength=4) / 3000
    assert shares.tolist() == pytest.approx([1 / 3] * 3 + [0], abs=0.03)


def test_runs_of_all_columns_are_images():
    tokens = torch.randn(4, 5, 2)
    runs, numbers = random_runs(tokens, 5, rows())
    assert torch.equal(runs, tokens) and numbers.tolist() == [[0, 1, 2, 3, 4]] * 4


def test_runs_do_not_depend_on_the_number_of_processes():
    tokens = torch.randn(6, 5, 2)
    whole, _ = random_runs(tokens, 2, rows())
    for rank in range(3):
        share, _ = random_runs(tokens[rank::3], 2, rows(rank, 3))
        assert torch.equal(share, whole[rank::3])


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
def test_the_picture_shows_what_there_is(tmp_path, measured):
    logs = Logs(tmp_path)
    for step in range(1, 4):
        logs.scalars(step, {"train/loss": 1 / step, "columns/loss_00": 1.0, "columns/loss_01": 2.0})
    if measured:
        logs.scalars(3, {"eval/loss": 1.0, "eval_columns/loss_00": 1.0})
    logs.close()
    save_picture(tmp_path / "metrics.csv", tmp_path / "columns.png")
    with Image.open(tmp_path / "columns.png") as picture:
        assert picture.height > (900 if measured else 300) > picture.height / 3
