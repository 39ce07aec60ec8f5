from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import checkpoint
from generator.checkpoints import to_released


def pictures(folder: Path) -> np.ndarray:
    files = sorted((folder / "images").glob("*.png"))
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def drawn(project, start, tmp_path_factory) -> Path:
    """Five images, in batches of two."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    flags = project.drawing("--resume", project.generator, "--output_dir", folder)
    done = start("eval_generator", *flags)
    assert (done.code, done.out) == (0, f"images: {folder / 'images'}\n"), done.err
    return folder


def test_images_and_the_settings_they_were_made_with(drawn):
    images = pictures(drawn)
    assert images.shape == (5, 64, 128, 3)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5
    settings = json.loads((drawn / "settings.json").read_text())
    assert settings["guidance"] == {"scale": 2.0, "schedule": "linear", "ramp": 16}
    assert settings["solver"] == {"method": "euler", "steps": 2, "power": 1.0}
    assert (settings["columns"], settings["pieces"], settings["precision"]) == (16, None, "fp32")


@pytest.mark.parametrize("size", [1, 5])
def test_an_image_is_the_same_in_every_batch(project, drawn, call, tmp_path, size):
    flags = project.drawing("--resume", project.generator, "--output_dir", tmp_path / "out")
    assert call("eval_generator", *flags, "--eval_bsz", size).code == 0
    assert abs(pictures(tmp_path / "out") - pictures(drawn)).max() <= 1


def test_two_processes_draw_the_images_of_one(drawn, together):
    assert files(together / "images") == files(drawn)
    settings = [(folder / "settings.json").read_text() for folder in (drawn, together / "images")]
    assert settings[0] == settings[1]


def test_a_broken_run_goes_on_and_leaves_the_same_set(project, drawn, call, tmp_path):
    out = tmp_path / "out"
    flags = project.drawing("--resume", project.generator, "--output_dir", out)
    assert call("eval_generator", *flags).code == 0
    times = {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    (out / "images" / "000001.png").unlink()
    (out / "images" / ".000004.png.77.tmp").write_bytes(b"begun when it was killed")
    assert call("eval_generator", *flags).code == 0
    (out / "images" / ".000004.png.77.tmp").unlink()
    assert files(out) == files(drawn)
    again = {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    kept = {name for name, time in times.items() if again[name] == time}
    assert kept == {f"00000{k}.png" for k in (0, 2, 3, 4)}


def test_nothing_of_another_kind_is_mixed_in(project, call, tmp_path):
    out = tmp_path / "out"
    flags = project.drawing("--resume", project.generator, "--output_dir", out)
    assert call("eval_generator", *flags).code == 0
    for changed, message in [
        (
            ("--cfg", 3),
            "holds results made with guidance {'scale': 2.0, 'schedule': 'linear', 'ramp': 16}",
        ),
        (("--seed", 1), "holds results made with seed 0, not 1"),
        (("--solver", "ab2"), "holds results made with solver {'method': 'euler', 'steps': 2"),
        (("--precision", "bf16"), "holds results made with precision 'fp32', not 'bf16'"),
        (("--raw",), "holds results made with generator"),
        (("--labels", "random"), "holds results made with labels 'balanced', not 'random'"),
        (("--num_images", 4), "found 000004.png, which is none of the 4 images"),
    ]:
        done = call("eval_generator", *flags, *changed)
        assert done.code == 2 and message in done.err, done.err


def test_a_checkpoint_under_the_released_names(project, drawn, call, tmp_path, size_flags):
    ours = checkpoint.load(project.generator / "checkpoint-last.pth")
    released = {k: to_released(ours[k]) for k in ("model", "model_ema")}
    checkpoint.save(tmp_path / "released.pth", released)
    given = ("--resume", tmp_path, "--ckpt", "released.pth", "--output_dir", tmp_path / "out")
    flags = project.drawing(*given)
    assert call("eval_generator", *flags, *size_flags).code == 0
    assert abs(pictures(tmp_path / "out") - pictures(drawn)).max() <= 1

    for changed, message in [
        ((), "--model: not given, and no --width either"),
        ((*size_flags, "--class_num", 3), "--class_num: found 3, expected 9"),
        ((*size_flags, "--diffloss_w", 16), "has shape [8"),
    ]:
        done = call("eval_generator", *flags, *changed)
        assert done.code == 2 and message in done.err, done.err


def test_images_are_measured_as_compute_metrics_measures_them(project, drawn, call, tmp_path):
    reference = tmp_path / "reference"
    given = project.drawing("--resume", project.generator, "--seed", 1, "--output_dir", reference)
    assert call("eval_generator", *given).code == 0
    measuring = ("--extractor", "random", "--splits", 1)
    flags = project.drawing("--resume", project.generator, "--output_dir", drawn)
    compared = ("--reference", reference / "images", "--metrics")
    done = call("eval_generator", *flags, *measuring, *compared)
    assert done.code == 0, done.err
    assert "no figure here is an FID" in done.out
    record = json.loads((drawn / "metrics.json").read_text())
    assert record["drawing"]["drawn"] == 0 and record["drawing"]["seed"] == 0
    folders = (drawn / "images", reference / "images")
    assert call("compute_metrics", *folders, *measuring, "--json", tmp_path / "m.json").code == 0
    assert record["figures"] == json.loads((tmp_path / "m.json").read_text())["figures"]
    assert {"random_features_distance", "random_features_score"} <= record["figures"].keys()


@pytest.mark.parametrize("columns", [2, 5, 40])
def test_any_number_of_columns(project, call, tmp_path, columns):
    flags = project.drawing("--resume", project.generator, "--output_dir", tmp_path / "out")
    assert call("eval_generator", *flags, "--token_num", columns, "--num_images", 1).code == 0
    assert pictures(tmp_path / "out").shape == (1, 64, 8 * columns, 3)


def test_a_wide_image_is_decoded_in_pieces(project, call, tmp_path):
    """Other pixels than from the whole by a few levels, and recorded as such."""
    flags = ("--resume", project.generator, "--token_num", 40, "--num_images", 1)
    found = []
    for pieces in ((), ("--decode_columns", 16, "--decode_overlap", 8)):
        out = tmp_path / str(len(pieces))
        done = call("eval_generator", *project.drawing(*flags, "--output_dir", out, *pieces))
        assert done.code == 0, done.err
        found.append(pictures(out))
    assert found[0].shape == found[1].shape == (1, 64, 320, 3)
    assert json.loads((out / "settings.json").read_text())["pieces"] == {
        "columns": 16,
        "overlap": 8,
    }
    assert 0 < abs(found[0] - found[1]).mean() < 10


def test_labels_say_which_classes_are_drawn(project, drawn, call, tmp_path):
    names = checkpoint.load(project.generator / "checkpoint-last.pth")["class_names"]
    out = tmp_path / "out"
    given = ("--resume", project.generator, "--output_dir", out, "--labels", f"{names[3]},0-1")
    assert call("eval_generator", *project.drawing(*given)).code == 0
    same = [(pictures(out)[k] == pictures(drawn)[k]).all() for k in range(5)]
    assert same == [False, False, False, True, False]  # of classes 3, 0, 1, 3, 0 now


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_given_picture_is_continued(project, drawn, call, tmp_path, side):
    picture = drawn / "images" / "000000.png"
    given = ("--resume", project.generator, "--prefix_image", picture, "--prefix_side", side)
    flags = project.drawing(*given, "--output_dir", tmp_path / "out")
    done = call("eval_generator", *flags)
    assert done.code == 2
    assert "--token_num: found 16" in done.err and "has 16 columns already" in done.err
    assert call("eval_generator", *flags, "--token_num", 24).code == 0
    wide = pictures(tmp_path / "out")
    assert wide.shape == (5, 64, 192, 3)
    new, old = (wide[..., 128 + 32 :, :], wide[..., :96, :])
    if side == "left":
        new, old = wide[..., :32, :], wide[..., 96:, :]
    assert abs(old - old[:1]).mean() < abs(new[1:] - new[:1]).mean()  # one past, many futures
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["prefix"]["side"] == side


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--width", 8), "--width: found 8, but the checkpoint has 16"),
        (("--token_num", 1), "--token_num: found 1, expected at least 2"),
        (("--num_iter", 8), "--num_iter: found 8, expected --token_num (16)"),
        (("--num_images", 0), "--num_images: found 0, expected at least 1"),
        (("--metrics", "--weights_dir", "none"), "inception-2015-12-05-6726825d.pth: missing in"),
        (("--reference", "images"), "--reference: given without --metrics"),
        (("--metrics", "fid,psnr"), "--metrics: found 'psnr', expected some of fid,is,kid,prc"),
        (("--metrics", "fid", "--extractor", "random"), "--metrics: found fid, but there is no"),
        (("--vae_norm", 2), "--vae_norm: found 2.0, but the checkpoint has"),
        (("--prefix_side", "left"), "--prefix_side: found left without --prefix_image"),
        (("--cfg_ramp", 4, "--cfg_schedule", "constant"), "--cfg_ramp: given with --cfg_schedule"),
        (("--labels", "9"), "--labels: found '9', expected balanced, random, or classes by their"),
        (("--prefix_image", "no.png"), "no.png: no such picture"),
        (("--eval_bsz", 0), "--eval_bsz: found 0, expected at least 1"),
        (("--num_sampling_steps", 0), "--num_sampling_steps: found 0, expected at least 1"),
        (("--time_power", -1), "--time_power: found -1.0, expected a number above 0"),
        (("--cfg_ramp", 0), "--cfg_ramp: found 0, expected at least one column"),
        (("--temperature", -1), "--temperature: found -1.0, expected 0 or more"),
        (("--decode_columns", 1), "--decode_columns: found 1, expected at least 2"),
        (("--decode_overlap", 200), "--decode_overlap: found 200, expected 0 … 128"),
        (("--precision", "tf32"), "--precision: found 'tf32' on cpu"),
        (("--solver", "rk4"), "--solver: invalid choice: 'rk4'"),
        (("--ckpt", "no.pth"), "no.pth: no such checkpoint file"),
        (("--config_path", "no.yaml"), "no.yaml: cannot read this configuration"),
        (("--model", "giant_model"), "--model: invalid choice: 'giant_model'"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, flags, message):
    given = ("--resume", project.generator, "--output_dir", tmp_path / "out")
    done = call("eval_generator", *project.drawing(*given, *flags))
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_the_generator_was_not_trained_on(project, call, tmp_path):
    payload = checkpoint.load(project.run / "checkpoints" / "last.ckpt")
    payload["state_dict"]["ema.model.encoder.conv_in.bias"] += 1
    checkpoint.save(tmp_path / "other.ckpt", payload)
    given = ("--resume", project.generator, "--output_dir", tmp_path / "out")
    override = f"model.params.ckpt_path={tmp_path / 'other.ckpt'}"
    done = call("eval_generator", *project.drawing(*given, override))
    assert done.code == 2 and "was trained on tokens of tokenizer" in done.err


def test_a_mistake_under_torchrun_ends_all_processes_and_is_told(project, start, tmp_path):
    given = ("--resume", project.generator, "--output_dir", tmp_path / "out", "--num_images", 0)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = start("eval_generator", *project.drawing(*given), launcher=launcher)
    assert done.code != 0
    assert "error: --num_images: found 0, expected at least 1" in done.err
