from __future__ import annotations

import pytest
import torch

from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws, generator
from generator.evaluation import Evaluation, Few
from generator.objective import Draws, training_loss

from .trained import ALONE, Tokens, build, noisy


def evaluation(**given):
    settings = {"dataset": Tokens(), "images": 9, "batch_size": 4, "process": ALONE}
    return Evaluation(**{**settings, "tokenise": noisy, "seed": 3, "repeats": 2, **given})


@pytest.fixture
def model(tmp_path):
    """Of a few updates, so that columns differ."""
    trainer = build(tmp_path, warmup_epochs=0)
    trainer.run()
    return trainer.learner.updates.ema.model


def test_every_column_of_whole_batches_is_measured(model):
    """Eight of ten images, evenly spread, in two batches."""
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
    assert list(found) == [0, 1, 2, 3, 4]
    assert list(found.values()) == pytest.approx(expected.tolist())


def test_it_is_the_same_each_time_and_trains_nothing(model):
    measure = evaluation()
    before = [p.clone() for p in model.parameters()]
    assert measure(model) == measure(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_columns_that_are_not_trained_are_measured_all_the_same(tmp_path):
    trainer = build(tmp_path, train_columns="1-2", warmup_epochs=0, epochs=40)
    measure = evaluation()
    before = measure(trainer.learner.model.eval())
    trainer.learner.model.train()
    trainer.run()
    after = measure(trainer.learner.model.eval())
    assert before.keys() == after.keys() == set(range(5))
    assert all(after[i] < before[i] for i in (1, 2))


def test_pictures_keep_their_crop():
    """An item is asked for by its own number, which decides crop and flip."""
    few = Few(list(range(100, 110)), 4)
    draws = Evaluation(Tokens(), 4, 4, ALONE, noisy, 0, 1).loader.sampler
    for _ in range(2):
        assert [few[draw] for draw in draws] == [100, 102, 105, 107]
        draws.set_epoch(draws.epoch + 1)


def test_too_few_images_for_a_batch():
    process = Process(0, 0, 3, torch.device("cpu"))
    with pytest.raises(UserError, match="--eval_images: found 9 images to measure, expected at le"):
        evaluation(process=process)
