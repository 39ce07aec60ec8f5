import pytest
import torch

from common.checkpoint import save
from common.errors import UserError
from common.pretrained.files import FILES, find
from common.pretrained.vit import vision_transformer


def test_the_first_published_files_are_taken_too(pretrained_folder, tmp_path):
    """They may hold a token more, which only their own training uses."""
    expected = vision_transformer("dino", pretrained_folder).state_dict()
    save(tmp_path / f"{FILES['dino'].timm}.pth", {**expected, "mask_token": torch.zeros(1, 384)})
    found = vision_transformer("dino", tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_network_is_named(pretrained_folder, tmp_path):
    (tmp_path / FILES["dino"].name).symlink_to(find("dinov2", pretrained_folder))
    with pytest.raises(UserError, match=r"dino.safetensors: .* Unexpected .*blocks.0.ls1.gamma"):
        vision_transformer("dino", tmp_path)
    with pytest.raises(UserError, match=r"dino.safetensors: missing in .*nowhere"):
        vision_transformer("dino", tmp_path / "nowhere")
