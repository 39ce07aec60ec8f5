import dataclasses

import pytest
import torch

from common.seeding import BatchDraws, generator
from generator.data import evaluation_batches
from generator.evaluate import ColumnLosses
from generator.objective import Draws

from .plain import training_loss
from .trained import ALONE, CONFIG, Tokens, build, network, noisy


def test_mean_losses_of_images_and_of_runs():
    losses = ColumnLosses(3, torch.device("cpu"))
    losses.add(torch.tensor([[[1.0, 2, 3]], [[3.0, 4, 5]]]))  # two draws of one image
    losses.add(torch.tensor([[[4.0, 6, 7]]]))
    assert losses.means() == {0: 3.0, 1: 4.5, 2: 5.5}
    losses = ColumnLosses(4, torch.device("cpu"))
    draws = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [5.0, 6.0]]])  # [2, 2, 2]
    losses.add(draws, torch.tensor([[0, 1], [1, 2]]))
    assert losses.means() == {0: 1.0, 1: (2 + 4) / 2, 2: 5.0}


def test_every_column_of_whole_batches_is_measured(tmp_path):
    """Eight of ten images, evenly spread, in two batches; the same each time."""
    settings = {"eval_images": 9, "seed": 3, "diffusion_batch_mul": 2}
    config = dataclasses.replace(CONFIG, **settings)
    dataset, expected, model = Tokens(), torch.zeros(5), network().eval()
    batches = evaluation_batches(dataset, config, ALONE, 0)
    trainer = build(tmp_path, held_out=batches, **settings)
    trainer.ema.model = model
    found = trainer.evaluate()
    for i in range(2):
        items = [dataset[(4 * i + k) * 10 // 8] for k in range(4)]
        rows = BatchDraws(generator(3, "evaluation", i))
        batch = torch.stack([t for t, _ in items]), torch.tensor([label for _, label in items])
        tokens, labels = noisy(batch, rows)
        draws = Draws.random(tokens, rows, 0, 0.0, 2)
        with torch.no_grad():
            expected += training_loss(model, tokens, labels, draws) / 2
    assert list(found.values()) == pytest.approx(expected.tolist())
    assert found == trainer.evaluate()
