"""The configs of stage one, and the files of the release, through the scripts."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from common import checkpoint, config
from common.logger import read_rows
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.train import Settings

from ..released import to_released

ROOT = Path(__file__).parents[2]
FOLDER, RELEASED = ROOT / "configs" / "first_stage", ROOT / "tests" / "reference" / "configs"
SIZES = ("ddconfig", "embed_dim", "std", "sematicconfig", "post_channels")
SMALL = """
data.params.batch_size=2 data.params.num_workers=0
model.params.ddconfig.resolution=32 model.params.ddconfig.ch=8 model.params.ddconfig.ch_mult=[1,1,1]
model.params.ddconfig.num_res_blocks=1 model.params.ddconfig.z_channels=4
model.params.ddconfig.len_down_scale=2 model.params.ddconfig.norm_groups=4
model.params.embed_dim=8 model.params.post_channels=null
model.params.sematicconfig.ch=8 model.params.sematicconfig.ch_mult=[1]
model.params.sematicconfig.num_res_blocks=1 model.params.sematicconfig.norm_groups=4
lightning.trainer.max_epochs=1 lightning.trainer.log_every_n_steps=1
lightning.trainer.precision=32-true model.params.lossconfig.params.disc_start=1
model.params.lossconfig.params.semantic_iter_start=1
""".split()  # noqa: SIM905
PLAIN = [
    f"model.params.lossconfig.params.{word}"
    for word in ("perceptual_weight=0", "semantic_loss_w=0", "disc_type=none")
]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Overrides that name a tiny ImageNet: four images of two classes in each part."""
    root = tmp_path_factory.mktemp("imagenet")
    for part in ("train", "validation"):
        for k in range(4):
            folder = root / "autoencoders" / "data" / f"ILSVRC2012_{part}" / "data" / f"n{k % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((48, 40), 60 + k).convert("RGB").save(folder / f"{k}.JPEG")
    return [
        f"data.params.{part}.params.config.{key}={value}"
        for part in ("train", "validation")
        for key, value in (("datadir", root), ("size", 32))
    ]


def released_file(path, sizes):
    """A checkpoint as Lightning 1 wrote the released one, with another EMA copy."""
    torch.manual_seed(1)
    raw, average = Tokenizer(**sizes), Tokenizer(**sizes)
    checkpoint.save(path, {"state_dict": to_released(raw, average), "global_step": 7})
    return average


def small_sizes(name, overrides=()):
    params = OmegaConf.to_container(config.load(name, [*SMALL, *overrides]).model.params)
    return {k: v for k, v in params.items() if k in SIZES}


@pytest.mark.parametrize("name", [p.name for p in sorted(FOLDER.glob("*.yaml"))])
def test_every_config_is_sound(name):
    settings = config.structured(Settings, config.load(FOLDER / name))
    sizes = {k: v for k, v in settings.model.params.items() if k in SIZES}
    with torch.device("meta"):
        assert Tokenizer(**sizes).height == sizes["ddconfig"]["resolution"]


def test_our_files_mean_the_released_ones():
    for ours, released in (
        ("tokenizer_config", "first_stage_tokenizer_config"),
        ("tokenizer_config_stage2", "first_stage_tokenizer_config_stage2"),
    ):
        found = yaml.safe_load((FOLDER / f"{ours}.yaml").read_text())
        expected = yaml.safe_load((RELEASED / f"{released}.yaml").read_text())
        assert found.pop("seed") == 23 and found.pop("lightning")
        for file in (found, expected):
            file["model"]["params"].pop("ckpt_path", None)
            for part in ("train", "validation"):
                file["data"]["params"][part]["params"]["config"].pop("datadir")
        assert found == expected


@pytest.mark.parametrize("name", ["", "_stage2"])
def test_released_files_are_sound_as_they_are(name, call, imagenet, tmp_path):
    """Their networks are the full ones; the objective's would have to be downloaded."""
    path = RELEASED / f"first_stage_tokenizer_config{name}.yaml"
    sizes = [word for word in SMALL if "model.params" not in word]
    data = [word.replace("size=32", "size=256") for word in imagenet]
    if name:
        released_file(tmp_path / "stage1.ckpt", small_sizes(path))
        data = [*imagenet, f"model.params.ckpt_path={tmp_path / 'stage1.ckpt'}"]
        sizes = SMALL
    done = call("train_tokenizer", "-t", "False", "-b", path, *sizes, *data, *PLAIN)
    assert done.code == 0 and "the configs are sound" in done.out, done.err


def test_a_released_tokenizer_through_the_scripts(call, imagenet, tmp_path):
    """Export and evaluation of its file and YAML."""
    path = RELEASED / "second_stage_tokenizer_config.yaml"
    words = [word for word in SMALL if ".lossconfig." not in word and not word.startswith("data.")]
    sizes = small_sizes(path, words)
    average = released_file(tmp_path / "tokenizer.ckpt", sizes)
    words = [*words, f"model.params.ckpt_path={tmp_path / 'tokenizer.ckpt'}"]
    done = call("export_tokenizer", path, tmp_path / "exported", *words)
    assert done.code == 0, done.err
    found = load_tokenizer(tmp_path / "exported")
    assert float(found.token_scale) == pytest.approx(0.05493)
    for name, value in average.state_dict().items():
        assert name == "token_scale" or torch.equal(found.state_dict()[name], value), name
    data = FOLDER / "tokenizer_config.yaml"
    out = ("--output_dir", tmp_path / "out", "--weights_dir", tmp_path, "--device", "cpu")
    done = call("eval_tokenizer", path, "-b", data, *words, *imagenet, *out)
    assert done.code == 0 and "psnr" in done.out, done.err


def test_the_whole_objective(call, imagenet, pretrained_folder, tmp_path):
    """LPIPS, DINO, DINOv2 and all: two updates, and the validation with LPIPS."""
    flags = ("--weights_dir", pretrained_folder, "--device", "cpu", "-l", tmp_path)
    done = call(
        "train_tokenizer", "-b", FOLDER / "tokenizer_config.yaml", *flags, *SMALL, *imagenet
    )
    assert done.code == 0, done.err
    (run,) = tmp_path.iterdir()
    values = {name: float(value) for _, name, value in read_rows(run / "logs" / "metrics.csv")}
    names = ("lpips", "semantic", "adversarial", "d_weight", "disc", "logits_real", "logits_fake",
             "rec", "kl", "grad_norm", "disc_grad_norm", "lr")  # fmt: skip
    assert all(math.isfinite(values[f"train/{n}"]) for n in names)
    assert {"val/psnr", "val/ssim", "val/lpips", "val/token_scale"} <= values.keys()
    state = checkpoint.load(run / "checkpoints" / "last.ckpt")
    assert state["updates"] == 2
    # of the objective, only the discriminator's heads
    names = [k for k in state["state_dict"] if k.startswith("objective.")]
    assert {k.split(".")[2] for k in names} == {"heads"}
    tokenizer = load_tokenizer(run / "checkpoints" / "last.ckpt")
    assert tokenizer.encode(torch.zeros(1, 3, 32, 48)).mean.shape == (1, 12, 8)
