import pytest
import torch
from torch.utils.data import TensorDataset

from common import images
from common.distributed import Process
from common.seeding import BatchDraws
from tokenizer.evaluate import Moments, measure_scale
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


def test_batches_and_shares_do_not_matter(tokenizer):
    dataset = some_images(7)
    whole = images.to_float(torch.stack([dataset[i][0] for i in range(7)]))
    moments = Moments()
    with torch.no_grad():
        moments.add(tokenizer.encode(whole))
    expected = moments.scale(ALONE.device)
    for batch_size in (2, 7):
        assert measure_scale(tokenizer, dataset, ALONE, batch_size=batch_size) == pytest.approx(
            expected
        )
    # every second image
    some = Moments()
    with torch.no_grad():
        some.add(tokenizer.encode(whole[[0, 2, 4]]))
    found = measure_scale(tokenizer, dataset, ALONE, limit=3)
    assert found == pytest.approx(some.scale(ALONE.device))
    assert found != pytest.approx(expected)
