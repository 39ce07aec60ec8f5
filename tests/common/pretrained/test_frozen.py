import pytest
import torch
from torch import nn

from common.checkpoint import save
from common.errors import UserError
from common.pretrained.files import FILES, find
from common.pretrained.frozen import Frozen, imagenet_scale, vision_transformer


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.network = Frozen(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9)))


def test_a_frozen_network_is_no_part_of_its_owner():
    owner = Owner().train()
    assert list(owner.state_dict()) == ["own.weight", "own.bias"]
    assert len(list(owner.parameters())) == 2 and len(list(owner.modules())) == 2
    assert not owner.network.network.training
    owner.to(torch.float64).requires_grad_(True)
    assert all(p.dtype == torch.float32 for p in owner.network.network.parameters())
    assert not any(p.requires_grad for p in owner.network.network.parameters())


def test_gradients_pass_through_it():
    x = torch.randn(4, 2, requires_grad=True)
    network = Owner().network
    network(x).sum().backward()
    assert torch.equal(x.grad, network.network[0].weight.sum(0).expand(4, 2))


def test_a_move_in_inference_mode_leaves_it_fit_for_gradients():
    network = Frozen(nn.Linear(2, 2, device="meta"))
    network.network.to_empty(device="cpu")
    with torch.inference_mode():
        network(torch.zeros(1, 2, device="meta"))
    assert not network.network.weight.is_inference()


def test_imagenet_scale_is_torchvisions():
    """Of white, black and grey, by the usual mean and deviation in [0, 1]."""
    images = torch.tensor([1.0, -1.0, 0.0])[:, None, None, None].expand(3, 3, 2, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor([[1.0], [0.0], [0.5]]) - mean) / std
    torch.testing.assert_close(imagenet_scale(images)[:, :, 1, 0], expected)
    assert imagenet_scale(images.bfloat16()).dtype == torch.float32


def test_the_first_published_files_are_taken_too(pretrained_folder, tmp_path):
    """They may hold a token more, which only their own training uses."""
    expected = vision_transformer("dino", pretrained_folder).state_dict()
    file = (tmp_path / FILES["dino"].name).with_suffix(".pth")
    save(file, {**expected, "mask_token": torch.zeros(1, 384)})
    found = vision_transformer("dino", tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_network_is_named(pretrained_folder, tmp_path):
    (tmp_path / FILES["dino"].name).symlink_to(find("dinov2", pretrained_folder))
    with pytest.raises(UserError, match=r"dino.safetensors: .* Unexpected .*blocks.0.ls1.gamma"):
        vision_transformer("dino", tmp_path)
    with pytest.raises(UserError, match=r"dino.safetensors: missing in .*nowhere"):
        vision_transformer("dino", tmp_path / "nowhere")
