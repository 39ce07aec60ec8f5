from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws
from generator.config import TrainConfig
from generator.data import ImageConfig, TokenSampler, image_data, training_batches

CPU = torch.device("cpu")


@dataclass
class Posterior:
    mean: torch.Tensor
    std: float

    def sample(self, draws):
        return self.mean + self.std * draws.normal(*self.mean.shape)


def encode(images):
    """Columns of eight pixels; a token is the mean of its column."""
    return images.unflatten(3, (-1, 8)).mean(dim=(1, 2, 4))[..., None]


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "data: {params: {train: {target: common.panoramas.dataset.Panoramas, "
        "params: {length: 10, size: 32}}}}"
    )

    def make(overrides=(), seed=0, **given):
        """Images of a tokenizer of columns of eight pixels."""
        size = SimpleNamespace(height=32, column_width=8)
        return image_data(ImageConfig(str(path), **given), overrides, size, True, seed)

    return make


def rows():
    return BatchDraws(torch.Generator().manual_seed(0))


def test_images_and_their_cached_means_give_the_same_tokens(load):
    data = load()
    pictures, labels = zip(*(data[i] for i in range(3)), strict=True)
    batch = torch.stack(pictures), torch.tensor(labels)
    tokens, found = TokenSampler(encode, Posterior, 0.1, 2.0, CPU)(batch, rows())
    assert tokens.shape == (3, 4, 1) and torch.equal(found, batch[1])
    means = encode(batch[0].float() / 127.5 - 1)
    cached, _ = TokenSampler(None, Posterior, 0.1, 2.0, CPU)((means, batch[1]), rows())
    torch.testing.assert_close(cached, tokens)
    # the tokenizer runs in inference mode, whose tensors a backward pass would refuse
    layer = torch.nn.Linear(1, 2)
    layer(tokens).sum().backward()
    assert not tokens.requires_grad and layer.weight.grad.any()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"data_path": "nowhere"}, "nowhere"),
        ({"img_size": 64}, "--img_size"),
        ({"overrides": ["data=null"]}, "--data_path"),
        ({"overrides": ["data.params.train.params.size=40"]}, "data.params.train"),
        ({"overrides": ["data.params.train.params.width=36"]}, "data.params.train"),
    ],
)
def test_images_that_do_not_fit_are_named(load, given, name):
    with pytest.raises(UserError, match=name):
        load(**given)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_of_all_processes_make_one_pass(load, accumulate):
    data = load()
    draws = []
    for rank in range(2):
        process = Process(rank, rank, 2, CPU)
        config = TrainConfig(batch_size=2 // accumulate, accumulate=accumulate)
        loader = training_batches(data, config, process, workers=0)
        assert len(loader) == 2 * accumulate
        assert all(len(labels) == 2 // accumulate for _, labels in loader)
        draws += [draw.index for draw in loader.sampler]
    assert len(set(draws)) == 8
