"""The configs of stage one, as they stand in the repository, on small networks and pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from common import checkpoint, config, images
from common.panoramas.dataset import Panoramas
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.released import to_released

FOLDER = Path(__file__).parents[2] / "configs" / "first_stage"
# The paper's sizes divided, in the places where the files have them.
SMALL = [
    "model.params.embed_dim=8",
    "model.params.post_channels=128",
    "model.params.ddconfig.resolution=64",
    "model.params.ddconfig.ch=32",
    "model.params.ddconfig.z_channels=32",
    "model.params.ddconfig.num_res_blocks=1",
    "model.params.sematicconfig.z_channels=128",
    "model.params.sematicconfig.ch=32",
    "model.params.lossconfig.params.disc_start=0",
    "lightning.trainer.max_epochs=1",
    "lightning.trainer.log_every_n_steps=1",
    "data.params.batch_size=2",
    "data.params.num_workers=0",
]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The layout of latent diffusion, with four training and two validation pictures."""
    root = tmp_path_factory.mktemp("imagenet")
    pictures = Panoramas(length=6, size=80)
    for k in range(6):
        part = "train" if k < 4 else "validation"
        synset = ("n01440764", "n01443537")[k % 2]
        folder = root / f"autoencoders/data/ILSVRC2012_{part}/data/{synset}"
        folder.mkdir(parents=True, exist_ok=True)
        images.save_image(folder / f"{k}.jpg", pictures[k][0])
        (folder / f"{k}.jpg").rename(folder / f"{k}.JPEG")
    return root


def data(imagenet):
    parts = ("train", "validation")
    nodes = [f"data.params.{part}.params.config" for part in parts]
    return [f"{n}.datadir={imagenet}" for n in nodes] + [f"{n}.size=64" for n in nodes]


def logged(run):
    (file,) = run.glob("csv/version_*/metrics.csv")
    with file.open(newline="") as rows:
        return {k: float(v) for row in csv.DictReader(rows) for k, v in row.items() if v}


def run_of(call, folder, name, *flags):
    done = call("train_tokenizer", "-b", FOLDER / name, "-l", folder, "--device", "cpu", *flags)
    assert done.code == 0, done.err
    (run,) = folder.iterdir()
    return run


def network(settings):
    params = OmegaConf.to_container(settings.model.params)
    return Tokenizer(**{k: params[k] for k in ("ddconfig", "sematicconfig", "embed_dim", "std")})


@pytest.mark.parametrize("name", ["tokenizer_config.yaml", "paper.yaml"])
def test_the_whole_objective(name, call, imagenet, pretrained_folder, tmp_path):
    """LPIPS, DINO, DINOv2 and all: two updates, and the validation with LPIPS."""
    aligned = "model.params.lossconfig.params.semantic_iter_start=1"
    flags = ("--weights_dir", pretrained_folder, *SMALL, *data(imagenet), aligned)
    run = run_of(call, tmp_path, name, *flags)
    values = logged(run)
    names = ("lpips", "semantic", "adversarial", "d_weight", "disc", "logits_real", "logits_fake",
             "rec", "kl", "grad_norm", "disc_grad_norm", "lr")  # fmt: skip
    assert all(math.isfinite(values[f"train/{n}"]) for n in names)
    assert {"val/psnr", "val/ssim", "val/lpips", "val/token_scale"} <= values.keys()
    state = checkpoint.load(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["ema.updates"] == 2
    # of the objective, only the discriminator's heads
    assert {k.split(".")[2] for k in state if k.startswith("objective.")} == {"heads"}
    tokenizer = load_tokenizer(run / "checkpoints" / "last.ckpt")
    assert tokenizer.encode(torch.zeros(1, 3, 64, 96)).mode().shape == (1, 6, 8)


def test_stage_two_starts_from_a_released_layout(call, imagenet, pretrained_folder, tmp_path):
    small = [f for f in SMALL if "lightning" not in f]
    settings = config.load(FOLDER / "tokenizer_config_stage2.yaml", small)
    torch.manual_seed(1)
    tokenizer = network(settings)
    released = tmp_path / "tokenizer.ckpt"
    checkpoint.save(released, {"state_dict": to_released(tokenizer, tokenizer)})
    flags = ("--weights_dir", pretrained_folder, *SMALL, *data(imagenet))
    run = run_of(
        call,
        tmp_path / "runs",
        "tokenizer_config_stage2.yaml",
        *flags,
        f"model.params.ckpt_path={released}",
    )
    found = load_tokenizer(run / "checkpoints" / "last.ckpt").state_dict()
    for name, value in tokenizer.state_dict().items():
        if name.startswith(("encoder.", "to_tokens.")):
            assert torch.equal(found[name], value), name
    assert not torch.equal(found["decoder.conv_out.weight"], tokenizer.decoder.conv_out.weight)


def test_fine_tuning_goes_on_from_a_released_layout(call, imagenet, tmp_path):
    """All of it is trained; averages and raw weights start from the file's."""
    plain = ["perceptual_weight=0", "semantic_loss_w=0", "disc_type=none"]
    plain = [f"model.params.lossconfig.params.{word}" for word in plain]
    settings = config.load(FOLDER / "tokenizer_config.yaml", SMALL)
    raw, average = network(settings), network(settings)
    released = tmp_path / "tokenizer.ckpt"
    checkpoint.save(released, {"state_dict": to_released(raw, average)})
    still = ["model.base_learning_rate=0", f"model.params.ckpt_path={released}"]
    flags = [*SMALL, *data(imagenet), *plain, *still, "model.params.ema_decay=0"]
    run = run_of(call, tmp_path / "runs", "tokenizer_config.yaml", *flags)
    found = load_tokenizer(run / "checkpoints" / "last.ckpt", ema=False).state_dict()
    for name, value in raw.state_dict().items():
        if name != "token_scale":
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["tokenizer_config.yaml", "paper.yaml"])
def test_networks_that_are_missing_are_named(name, call, imagenet, tmp_path):
    flags = ("--weights_dir", tmp_path / "none", *SMALL, *data(imagenet))
    done = call("train_tokenizer", "-b", FOLDER / name, "-l", tmp_path, *flags)
    assert done.code == 2
    for part in ("vgg16-397923af.pth", str(tmp_path / "none"), "download_weights.py vgg16",
                 "https://download.pytorch.org", "perceptual_weight=0"):  # fmt: skip
        assert part in done.err, done.err
    assert list(tmp_path.iterdir()) == []


def test_one_file_after_the_other():
    """Released keys and the paper's build the same network and objective."""
    both = [config.load(FOLDER / f"{n}.yaml").model.params for n in ("tokenizer_config", "paper")]
    for key in ("embed_dim", "std", "post_channels"):
        assert both[0][key] == both[1][key]
    for section in ("ddconfig", "sematicconfig"):
        assert dict(both[1][section]).items() <= dict(both[0][section]).items()
    assert dict(both[0].lossconfig.params) == dict(both[1].lossconfig.params)
