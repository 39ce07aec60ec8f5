import pytest
import torch

from common.errors import UserError
from common.pretrained.lpips import LPIPS


@pytest.fixture(scope="module")
def lpips(pretrained_folder):
    return LPIPS(pretrained_folder)


@pytest.fixture
def pair():
    return torch.rand(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_distance_follows_its_definition(lpips, pair):
    """Squared differences of directions over the channels, weighted, after five layers."""
    network, expected = lpips.network.network, torch.zeros(3)
    seen = [network.net(network.scaling_layer(images)) for images in pair]
    for real, fake, head in zip(*seen, network.lins, strict=True):
        real, fake = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-4) for x in (real, fake))
        expected += head.model[-1]((real - fake).square()).mean((1, 2, 3))
    found = lpips(*pair)
    assert expected.min() > 0.05 and expected.std() > 0.001
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_file_of_other_weights_is_named(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "fc.bias": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"397923af.pth"):
        LPIPS(tmp_path)
