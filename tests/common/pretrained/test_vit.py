from __future__ import annotations

import pytest
import torch

from common.checkpoint import save
from common.errors import UserError
from common.pretrained.files import FILES, find
from common.pretrained.vit import resize_positions, vision_transformer


def test_a_slope_of_positions_stays_a_slope():
    """Bicubic interpolation keeps linear functions to 0.05 of a step, away from the border."""
    down, right = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    grid = torch.stack([down, right]).flatten(1).mT  # [37², 2]
    table = torch.cat([torch.full((1, 2), -9.0), grid])[None]
    found = resize_positions(table, 16, 20)
    assert found.shape == (1, 1 + 16 * 20, 2)
    assert (found[:, 0] == -9).all()
    found = found[0, 1:].mT.unflatten(1, (16, 20))
    # 0.1 is added to the new size: centres lie a little nearer to the beginning
    rows = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    columns = (torch.arange(20) + 0.5) * 37 / 20.1 - 0.5
    torch.testing.assert_close(found[0, 1:-1, 5], rows[1:-1], atol=0.05, rtol=0)
    torch.testing.assert_close(found[1, 5, 1:-1], columns[1:-1], atol=0.05, rtol=0)


def test_the_first_published_files_are_taken_too(pretrained_folder, tmp_path):
    """They may hold a token more, which only their own training uses."""
    expected = vision_transformer("dino", pretrained_folder).state_dict()
    save(tmp_path / f"{FILES['dino'].timm}.pth", {**expected, "mask_token": torch.zeros(1, 384)})
    found = vision_transformer("dino", tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_network_is_named(pretrained_folder, tmp_path):
    (tmp_path / FILES["dino"].name).symlink_to(find("dinov2", pretrained_folder))
    with pytest.raises(UserError, match=r"dino.safetensors: .* 24 unexpected: blocks.0.ls1.gamma"):
        vision_transformer("dino", tmp_path)
    with pytest.raises(UserError, match=r"dino.safetensors: missing in .*nowhere"):
        vision_transformer("dino", tmp_path / "nowhere")
