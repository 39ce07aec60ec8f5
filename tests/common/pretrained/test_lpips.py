import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS

from common.errors import UserError
from common.pretrained.lpips import LPIPS


@pytest.fixture(scope="module")
def lpips(pretrained_folder):
    return LPIPS(pretrained_folder)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pair(generator):
    return torch.rand(2, 3, 3, 32, 48, generator=generator) * 2 - 1


def test_the_distance_is_that_of_torchmetrics(lpips, pair):
    theirs = _LPIPS(net="vgg", pnet_rand=True)  # the same heads, and a trunk to fill
    trunk = {
        k: v for k, v in lpips.network.network.state_dict().items() if k.startswith("features.")
    }
    names = [k for k in theirs.state_dict() if k.startswith("net.")]
    renamed = {name: trunk["features." + name.split(".", 2)[2]] for name in names}
    assert len(renamed) == len(trunk) == 26
    theirs.load_state_dict(renamed, strict=False)
    found, expected = lpips(*pair), theirs(*pair).flatten()
    assert found.shape == (3,)
    assert expected.min() > 0.05 and expected.std() > 0.001
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_gradient_reaches_the_images_alone(lpips, pair):
    images, reference = pair[0].requires_grad_(), pair[1].requires_grad_()
    distance = lpips(images, reference)
    (gradient,) = torch.autograd.grad(distance.sum(), images, retain_graph=True)
    assert torch.autograd.grad(distance.sum(), reference, allow_unused=True) == (None,)
    # along the gradient the distance grows as fast as the gradient is long
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        rise = lpips(images + step, reference) - lpips(images - step, reference)
    assert rise.sum().item() / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_under_autocast_the_distance_stays_in_float32(lpips, pair):
    with torch.autocast("cpu", torch.bfloat16):
        found = lpips(*pair)
        assert {x.dtype for x in lpips.network.network.directions(pair[0])} == {torch.float32}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, lpips(*pair), rtol=0.02, atol=0)


def test_a_file_of_other_weights_is_named(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "fc.bias": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"397923af.pth"):
        LPIPS(tmp_path)
