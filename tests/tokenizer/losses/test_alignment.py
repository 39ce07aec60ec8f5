import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from common.pretrained.files import find
from tokenizer.losses.alignment import Alignment


@pytest.fixture(scope="module")
def alignment(pretrained_folder):
    return Alignment(pretrained_folder)


@pytest.fixture
def images(generator):
    return torch.rand(2, 3, 40, 60, generator=generator) * 2 - 1


def test_features_are_the_normalised_patch_tokens_of_timm(alignment, images, pretrained_folder):
    network = timm.create_model(
        "vit_base_patch14_dinov2.lvd142m", pretrained=False, weight_init="skip"
    )
    timm.models.load_checkpoint(network, str(find("dinov2", pretrained_folder)))
    network.eval().set_input_size((28, 42))
    # all but the way in which positions are resized is the same
    table = alignment.features.network.transformer.pos_embed
    network.pos_embed.data = resample_abs_pos_embed(table, [2, 3])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    scaled = F.interpolate(scaled, (28, 42), mode="bicubic")
    with torch.no_grad():
        tokens = network.forward_features(scaled)[:, 1:]
    found = alignment.features(images, 2, 3)
    assert found.shape == (2, alignment.channels, 2, 3) and alignment.channels == 768
    torch.testing.assert_close(found, tokens.mT.reshape(2, 768, 2, 3), atol=1e-4, rtol=1e-4)
    assert found[0, :, 0, 0].std() > 0.5 and (found[0] - found[1]).abs().max() > 0.1


def test_the_loss_is_summed_over_an_image_and_averaged_over_the_batch(alignment, images):
    semantic_map = torch.zeros(2, 768, 2, 3, requires_grad=True)
    wanted = alignment.features(images, 2, 3)
    images.requires_grad_()
    loss = alignment.loss(semantic_map, images)
    torch.testing.assert_close(loss, wanted.square().sum() / 2)
    loss.backward()
    torch.testing.assert_close(semantic_map.grad, -2 * wanted / 2)
    assert images.grad is None
    assert alignment.loss(wanted, images).item() == 0
