import copy
import math

import pytest
import timm
import torch
from torch.nn import functional as F

from common.pretrained.files import find
from common.pretrained.frozen import imagenet_scale
from tokenizer.losses.dino import CROP_DRAWS, DinoDiscriminator, LocalBatchNorm, to_square

PATCHES, WIDTH = 196, 384


@pytest.fixture(scope="module")
def discriminator(pretrained_folder):
    torch.manual_seed(0)
    return DinoDiscriminator(pretrained_folder).eval()


@pytest.fixture
def images(generator):
    return torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1


@pytest.fixture
def features(generator):
    return [torch.randn(3, WIDTH, PATCHES, generator=generator) for _ in range(5)]


def test_features_are_those_of_timms_blocks(discriminator, images, pretrained_folder):
    network = timm.create_model(
        "vit_small_patch16_224.dino", pretrained=False, weight_init="skip"
    ).eval()
    timm.models.load_checkpoint(network, str(find("dino", pretrained_folder)))
    inputs = []
    for number in (0, 3, 6, 9):  # what enters a block has left the one before
        network.blocks[number].register_forward_hook(lambda _, x, y: inputs.append(x[0]))
    network.blocks[11].register_forward_hook(lambda _, x, y: inputs.append(y))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        network(F.interpolate(scaled, (224, 224), mode="bicubic"))
        found = discriminator.trunk(to_square(imagenet_scale(images)))
    assert len(found) == len(inputs) == 5
    for ours, theirs in zip(found, inputs, strict=True):
        assert ours.shape == (2, WIDTH, PATCHES)
        expected = theirs[:, 1:] + theirs[:, :1]
        torch.testing.assert_close(ours, expected.mT, atol=1e-4, rtol=1e-4)


def norm_by_hand(x, group):
    mean = x.mean((0, 2), keepdim=True)
    deviation = (x.var((0, 2), correction=0, keepdim=True) + 1e-6).sqrt()
    return group.weight[:, None] * (x - mean) / deviation + group.bias[:, None]


@pytest.mark.parametrize(
    ("batch", "groups"), [(1, [1]), (8, [8]), (16, [8, 8]), (9, [5, 4]), (12, [6, 6])]
)
def test_the_norm_knows_its_group_alone(generator, batch, groups):
    norm = LocalBatchNorm(4)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.uniform_(norm.bias)
    x = 3 + 2 * torch.randn(batch, 4, 6, generator=generator)
    expected = torch.cat([norm_by_hand(g, norm) for g in x.split(groups)])
    torch.testing.assert_close(norm.eval()(x), expected)
    torch.testing.assert_close(norm.train()(x), expected)
    assert list(norm.state_dict()) == ["weight", "bias"]
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.float32


def unit(conv):
    """The weight of a convolution, over its largest singular value."""
    weight = conv.parametrizations.weight.original.detach()
    return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def settle(discriminator):
    """Let the power iteration of the spectral norms come to its end."""
    discriminator.train()
    with torch.no_grad():
        for _ in range(150):
            for head in discriminator.heads:
                for conv in (head[0][0], head[1].block[0], head[2]):
                    _ = conv.weight
    discriminator.eval()


def test_a_head_by_hand(discriminator, images, features, monkeypatch):
    settle(discriminator)
    with torch.no_grad():
        monkeypatch.setattr(discriminator, "trunk", lambda _: features)
        logits = discriminator(images)
        assert logits.shape == (3, 5 * PATCHES)
        for i, (head, x) in enumerate(zip(discriminator.heads, features, strict=True)):
            first, second, last = head[0], head[1].block, head[2]
            y = F.conv1d(x, unit(first[0]), first[0].bias)
            y = F.leaky_relu(norm_by_hand(y, first[1]), 0.2)
            around = torch.cat([y[:, :, -4:], y, y[:, :, :4]], 2)
            z = F.conv1d(around, unit(second[0]), second[0].bias)
            z = (F.leaky_relu(norm_by_hand(z, second[1]), 0.2) + y) / math.sqrt(2)
            expected = F.conv1d(z, unit(last), last.bias)[:, 0]
            found = logits[:, i * PATCHES : (i + 1) * PATCHES]
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_spectral_norms_move_in_training_alone_and_outside_of_autocast(discriminator, features):
    head = copy.deepcopy(discriminator.heads[0])
    conv = head[1].block[0]
    power = conv.parametrizations.weight[0]
    torch.nn.init.normal_(power._u)  # far from where the iteration ends
    before, autocast = power._u.clone(), []
    power.register_forward_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        head.eval()(features[0])
        assert torch.equal(power._u, before)
        head.train()(features[0])
    assert autocast == [False, False]
    weight = conv.parametrizations.weight.original.detach().flatten(1)
    torch.testing.assert_close(power._v, F.normalize(weight.mT @ power._u, dim=0))
    assert not torch.allclose(power._u, before)


def test_large_images_are_cropped_half_of_the_time(generator):
    images = torch.rand(2, 3, 240, 232, generator=generator)
    draws = torch.tensor([0.49, 0.0, 0.999])
    assert len(draws) == CROP_DRAWS
    assert torch.equal(to_square(images, draws), images[:, :, :224, 8:])
    draws = torch.tensor([0.0, 0.5, 0.5])  # 17 and 9 places
    assert torch.equal(to_square(images, draws), images[:, :, 8:232, 4:228])
    whole = F.interpolate(images, (224, 224), mode="area")
    assert torch.equal(to_square(images, torch.tensor([0.5, 0.0, 0.0])), whole)
    assert torch.equal(to_square(images), whole)
