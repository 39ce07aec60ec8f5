import pytest
import torch
from torch.utils.data import TensorDataset

from common import checkpoint, images
from common.distributed import Process
from common.seeding import BatchDraws
from tokenizer import evaluate, load_tokenizer
from tokenizer.evaluate import Moments, rescale
from tokenizer.posterior import Posterior

ALONE = Process(0, 0, 1, torch.device("cpu"))


def some_images(count):
    values = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
    return TensorDataset(values, torch.zeros(count))


def test_the_scale_is_that_of_drawn_tokens():
    means = torch.randn(4000, 3, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1
    moments = Moments()
    for part in means.split(1500):
        moments.add(Posterior(part, 1.5))
    drawn = Posterior(means, 1.5).sample(BatchDraws(torch.Generator().manual_seed(2)))
    assert moments.scale(ALONE.device) == pytest.approx(1 / drawn.std().item(), rel=0.01)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_tokens_without_spread_have_no_scale(value):
    moments = Moments()
    moments.add(Posterior(torch.full((2, 3, 4), value), 0.0))
    assert moments.scale(ALONE.device) is None


def test_the_scale_is_stored_whatever_the_batches(tokenizer, tmp_path, monkeypatch):
    path, dataset = tmp_path / "last.ckpt", some_images(7)
    state = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()}
    checkpoint.save(path, {"state_dict": state, "tokenizer": tokenizer.sizes})
    whole = images.to_float(torch.stack([dataset[i][0] for i in range(7)]))
    for limit, numbers in ((50_000, range(7)), (3, [0, 2, 4])):
        monkeypatch.setattr(evaluate, "SCALE_IMAGES", limit)
        moments = Moments()
        with torch.no_grad():
            moments.add(tokenizer.encode(whole[[*numbers]]))
        expected = moments.scale(ALONE.device)
        for batch_size in (2, 7):
            found = rescale(path, dataset, ALONE, batch_size=batch_size).token_scale
            assert load_tokenizer(path).token_scale == found == pytest.approx(expected)
