from __future__ import annotations

import argparse

import pytest
import torch
from PIL import Image

from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws
from generator.data import count_columns, image_data, tokenise, training_batches

CPU = torch.device("cpu")


class Posterior:
    def __init__(self, mean):
        self.mean = mean

    def mode(self):
        return self.mean


class Tokenizer:
    """Columns of eight pixels; a token is the mean of its column."""

    height, column_width = 32, 8

    def encode(self, images):
        return Posterior(images.unflatten(3, (-1, 8)).mean(dim=(1, 2, 4))[..., None])

    def posterior(self, mean):
        return Posterior(mean)

    def sample_tokens(self, posterior, draws):
        noise = draws.normal(*posterior.mean.shape)
        return 2 * (posterior.mean + 0.1 * noise)


@pytest.fixture
def flags(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "data: {params: {train: {target: common.panoramas.dataset.Panoramas, "
        "params: {length: 10, size: 32}}}}"
    )

    def make(overrides=(), **given):
        given = {"data_path": None, "img_size": None, **given}
        return argparse.Namespace(config_path=path, overrides=list(overrides), **given)

    return make


def rows():
    return BatchDraws(torch.Generator().manual_seed(0))


def test_images_and_their_cached_means_give_the_same_tokens(flags):
    data = image_data(flags(), Tokenizer(), train=True, seed=0)
    assert count_columns(data, Tokenizer()) == 4
    pictures, labels = zip(*(data[i] for i in range(3)), strict=True)
    batch = torch.stack(pictures), torch.tensor(labels)
    tokens, found = tokenise(Tokenizer(), batch, rows(), CPU)
    assert tokens.shape == (3, 4, 1) and torch.equal(found, batch[1])
    means = Tokenizer().encode(batch[0].float() / 127.5 - 1).mean
    cached, _ = tokenise(Tokenizer(), (means, batch[1]), rows(), CPU)
    torch.testing.assert_close(cached, tokens)


def test_tokens_can_be_learned_from(flags):
    """The tokenizer runs in inference mode, whose tensors the backward pass would refuse."""
    data = image_data(flags(), Tokenizer(), train=True, seed=0)
    pictures = torch.stack([data[i][0] for i in range(3)])
    tokens, _ = tokenise(Tokenizer(), (pictures, torch.zeros(3)), rows(), CPU)
    layer = torch.nn.Linear(1, 2)
    layer(tokens).sum().backward()
    assert not tokens.is_inference() and not tokens.requires_grad and layer.weight.grad.any()


def test_a_folder_comes_before_the_configured_data(flags, tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (90, 90)).save(tmp_path / "a" / "1.png")
    data = image_data(flags(data_path=tmp_path, img_size=48), Tokenizer(), train=True, seed=3)
    assert data[0][0].shape == (3, 32, 48) and data.train and data.seed == 3
    assert count_columns(data, Tokenizer()) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data_path": "nowhere"}, "nowhere: no such folder"),
        ({"data_path": "nowhere", "img_size": 66}, "--img_size: found 66, expected a multiple of"),
        ({"data_path": "nowhere", "img_size": 8}, "--img_size: found 8, expected .* at least 16"),
        ({"img_size": 64}, "--img_size: given without --data_path"),
        ({"overrides": ["data=null"]}, "--data_path: not given, and .*two.yaml has no data"),
        ({"overrides": ["data.params.train.params.size=40"]}, "found pictures of 40 x 40 pixels"),
        ({"overrides": ["data.params.train.params.width=36"]}, "found pictures of 32 x 36 pixels"),
    ],
)
def test_images_that_do_not_fit_are_named(flags, given, message):
    with pytest.raises(UserError, match=message):
        image_data(flags(**given), Tokenizer(), train=True, seed=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_of_all_processes_make_one_pass(flags, accumulate):
    data = image_data(flags(), Tokenizer(), train=True, seed=0)
    draws = []
    for rank in range(2):
        process = Process(rank, rank, 2, CPU)
        loader = training_batches(data, 2 // accumulate, accumulate, process, 0, num_workers=0)
        assert len(loader) == 2 * accumulate
        assert all(len(labels) == 2 // accumulate for _, labels in loader)
        draws += [draw.index for draw in loader.sampler]
    assert len(set(draws)) == 8


@pytest.mark.parametrize(
    ("size", "accumulate", "world"), [(11, 1, 1), (6, 1, 2), (1, 1, 11), (3, 4, 1)]
)
def test_an_update_that_cannot_be_filled(flags, size, accumulate, world):
    data = image_data(flags(), Tokenizer(), train=True, seed=0)
    process = Process(0, 0, world, CPU)
    message = rf"--batch_size: found {size} x {accumulate} pass\(es\) on {world} process\(es\)"
    with pytest.raises(UserError, match=message):
        training_batches(data, size, accumulate, process, seed=0, num_workers=0)
