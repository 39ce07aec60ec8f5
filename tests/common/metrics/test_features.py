from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from common import checkpoint
from common.errors import UserError
from common.metrics.features import DinoV2, Inception, load_extractor, random_weights
from common.pretrained.files import FILES

INCEPTION = FILES["inception"].name


@pytest.fixture
def noise():
    return torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)


def test_random_weights_have_a_seed_and_a_name(random_extractor):
    found = random_extractor.network.state_dict()
    assert all(torch.equal(found[k], v) for k, v in random_weights(0).items())
    # these digits are the promise that the weights are the same on every machine
    assert random_extractor.about["weights"] == "609e75323747c326"
    assert (random_extractor.name, random_extractor.kind) == ("random:0", "random")
    other = load_extractor("random:7")
    assert other.name == "random:7" and other.about["weights"] != random_extractor.about["weights"]


def test_features_spread_and_do_not_depend_on_the_batch(random_extractor, noise):
    rows = random_extractor(noise)
    assert rows.shape == (2, 2048 + 1008) and rows.dtype == torch.float32
    assert 0.01 < rows[:, :2048].std() < 10 and 0.1 < rows[:, 2048:].std() < 100
    # sizes that differ: one after the other
    apart = random_extractor([noise[0], noise[1, :, :30]])
    torch.testing.assert_close(apart[0], rows[0], rtol=1e-3, atol=1e-3 * rows.std().item())
    assert not torch.allclose(apart[1], rows[1])


def test_weights_of_inception_are_those_published_or_marked(tmp_path):
    weights = random_weights(1)
    checkpoint.save(tmp_path / INCEPTION, weights)
    with pytest.raises(UserError, match=INCEPTION):
        load_extractor("inception", tmp_path)
    (tmp_path / INCEPTION).unlink()
    # without the counters of training, as a converted file may be
    trained = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    save_file(trained, (tmp_path / INCEPTION).with_suffix(".safetensors"))
    extractor = load_extractor("inception", tmp_path)
    assert not extractor.about["verified"]
    assert extractor.about["weights"] == load_extractor("random:1").about["weights"]


def test_missing_weights_are_named(tmp_path):
    for name, file in (("inception", "inception"), ("dinov2", "dinov2_large")):
        with pytest.raises(UserError, match=FILES[file].name):
            load_extractor(name, tmp_path)
    for name in ("inception:3", "random:x", "vgg"):
        with pytest.raises(UserError, match=name):
            load_extractor(name, tmp_path)


def test_weights_of_another_network_are_named():
    with pytest.raises(UserError, match=r"x\.pth"):
        Inception().fill({"fc.bias": torch.zeros(1008)}, "x.pth")


@pytest.fixture(scope="module")
def dinov2():
    """The smallest network of its kind, with random weights."""
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", patch_size=14, img_size=518, num_classes=0, init_values=1.0
    )
    return DinoV2(network.eval())


@torch.inference_mode()
def test_dinov2_gives_the_normed_class_token(dinov2):
    image, network = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8), dinov2.transformer
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    x = (image / 255 - mean) / std
    x = network.patch_embed.proj(x).flatten(2).mT
    x = torch.cat([network.cls_token, x], 1) + dinov2.positions
    expected = network.norm(network.blocks(x))[:, 0]
    torch.testing.assert_close(dinov2(image), expected, atol=1e-4, rtol=1e-4)
