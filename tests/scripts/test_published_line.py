"""The published commands, word for word but for paths and counts, and the launcher."""

import json

import pytest
import torch
import yaml

from common import checkpoint, images
from tokenizer.model import Tokenizer

from ..released import to_released

LINE = """
--model tiny_model --vae_embed_dim 256 --token_num 16 --num_iter 16 --diffloss_d 1 --diffloss_w 32
--cond_length 3 --class_num 30 --epochs 1 --warmup_epochs 1 --batch_size 3 --blr 1.0e-4
--float32 --diffusion_batch_mul 4 --buffer_size 16 --vae_norm 0.05493
--config_path {folder}/tokenizer_config.yaml --output_dir {folder}/out
--resume {folder}/out --ckpt checkpoint-last.pth --data_path {folder}/data
"""
SAMPLING = """
--model tiny_model --vae_embed_dim 256 --token_num 16 --num_iter 16 --diffloss_d 1 --diffloss_w 32
--cond_length 3 --eval_bsz 2 --float32 --diffusion_batch_mul 4 --buffer_size 16
--vae_norm 0.05493 --config_path {folder}/tokenizer_config.yaml --output_dir {folder}/images
--resume {folder}/out --ckpt checkpoint-last.pth --num_images 5 --cfg 7.0
"""
DDCONFIG = {
    **{"double_enc": False, "z_channels": 2, "resolution": 64, "in_channels": 3, "out_ch": 3},
    **{"ch": 4, "ch_mult": [1, 1, 1], "num_res_blocks": 0, "attn_resolutions": []},
    **{"dropout": 0.0, "len_down_scale": 2, "norm_groups": 2},
}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer under the released names, its YAML file, and an image of each of 30 classes."""
    tokenizer = Tokenizer(ddconfig=DDCONFIG, embed_dim=256)
    checkpoint.save(tmp_path / "tokenizer.ckpt", {"state_dict": to_released(tokenizer, tokenizer)})
    params = {"ckpt_path": str(tmp_path / "tokenizer.ckpt"), "embed_dim": 256, "std": 2.5}
    target = "tokenizer.models.tokenizer.EquivariantTokenizer"
    config = {"model": {"target": target, "params": {**params, "ddconfig": DDCONFIG}}}
    (tmp_path / "tokenizer_config.yaml").write_text(yaml.safe_dump(config))
    for k in range(30):
        (tmp_path / "data" / f"class_{k}").mkdir(parents=True)
        picture = torch.randint(256, (3, 64, 70), dtype=torch.uint8)
        images.save_image(tmp_path / "data" / f"class_{k}" / "1.png", picture)
    return tmp_path


def test_the_published_lines_train_and_sample(folder, call):
    done = call("train_generator", *LINE.format(folder=folder).split())
    assert done.code == 0, done.err
    assert f"no checkpoint in {folder / 'out'} yet: training from the beginning" in done.out
    state = checkpoint.load(folder / "out" / "checkpoint-last.pth")
    assert (state["epoch"], state["step"]) == (1, 10)
    assert state["generator"]["classes"] == 30 and state["generator"]["window"] == 3
    assert state["token_scale"] == pytest.approx(0.05493)
    assert state["training"]["precision"] == "fp32"

    line = [*SAMPLING.format(folder=folder).split(), "--num_sampling_steps", 2]
    done = call("eval_generator", *line, "--metrics", "--extractor", "random")
    assert done.code == 0, done.err
    assert len(list((folder / "images" / "images").iterdir())) == 5
    record = json.loads((folder / "images" / "metrics.json").read_text())
    assert record["figures"]["random_features_score"] >= 1 and "fid" in record["not_measured"]

    wide = ("--class_num", 30, "--token_num", 20, "--num_iter", 20, "--num_images", 3)
    done = call("eval_generator", *line, *wide, "--output_dir", folder / "wide")
    assert done.code == 0, done.err
    assert [images.read_rgb(f).width for f in (folder / "wide" / "images").iterdir()] == [80] * 3
