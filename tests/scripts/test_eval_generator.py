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
    expected = {"cfg": 2.0, "solver": "euler", "steps": 2, "columns": 16, "precision": "fp32"}
    assert settings.items() >= expected.items()


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
    for changed, name in [
        (("--cfg", 3), "made with cfg 2.0"),
        (("--precision", "bf16"), "made with precision"),
        (("--raw",), "made with generator"),
        (("--num_images", 4), "found 000004.png"),
    ]:
        done = call("eval_generator", *flags, *changed)
        assert done.code == 2 and name in done.err, done.err


def test_a_checkpoint_under_the_released_names(project, drawn, call, tmp_path, size_flags):
    ours = checkpoint.load(project.generator / "checkpoint-last.pth")
    released = {k: to_released(ours[k]) for k in ("model", "model_ema")}
    checkpoint.save(tmp_path / "released.pth", released)
    given = ("--resume", tmp_path, "--ckpt", "released.pth", "--output_dir", tmp_path / "out")
    flags = project.drawing(*given)
    assert call("eval_generator", *flags, *size_flags).code == 0
    assert abs(pictures(tmp_path / "out") - pictures(drawn)).max() <= 1


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
    assert record["sampling"]["sampled"] == 0 and record["sampling"]["seed"] == 0
    folders = (drawn / "images", reference / "images")
    assert call("compute_metrics", *folders, *measuring, "--json", tmp_path / "m.json").code == 0
    assert record["figures"] == json.loads((tmp_path / "m.json").read_text())["figures"]
    assert {"random_features_distance", "random_features_score"} <= record["figures"].keys()


def test_guidance_is_swept(project, drawn, call, tmp_path):
    """Each point once, in a folder of its own, with one table and one plot."""
    given = project.drawing("--resume", project.generator, "--output_dir", tmp_path)
    given = [*given[:-2], *given[-2:], "--cfg", "1", "2", "--metrics", "fid,is"]
    flags = [*given, "--extractor", "random", "--splits", "1", "--reference", str(drawn / "images")]
    assert call("eval_generator", *flags).code == 0
    points = json.loads((tmp_path / "sweep.json").read_text())
    assert list(points) == ["1.0", "2.0"]
    assert files(tmp_path / "cfg_2") == files(drawn)
    assert points["2.0"]["random_features_distance"] < points["1.0"]["random_features_distance"]
    with Image.open(tmp_path / "sweep.png") as plot:
        assert plot.width > 500


def test_labels_say_which_classes_are_drawn(project, drawn, call, tmp_path):
    names = checkpoint.load(project.generator / "checkpoint-last.pth")["class_names"]
    out = tmp_path / "out"
    given = ("--resume", project.generator, "--output_dir", out, "--labels", f"{names[3]},0-1")
    assert call("eval_generator", *project.drawing(*given)).code == 0
    same = [(pictures(out)[k] == pictures(drawn)[k]).all() for k in range(5)]
    assert same == [False, False, False, True, False]  # of classes 3, 0, 1, 3, 0 now


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_given_image_is_continued(project, drawn, call, tmp_path, side):
    picture = drawn / "images" / "000000.png"
    given = ("--resume", project.generator, "--prefix_image", picture, "--prefix_side", side)
    flags = project.drawing(*given, "--output_dir", tmp_path / "out")
    done = call("eval_generator", *flags)
    assert done.code == 2
    assert "--token_num: found 16" in done.err
    assert call("eval_generator", *flags, "--token_num", 24).code == 0
    wide = pictures(tmp_path / "out")
    assert wide.shape == (5, 64, 192, 3)
    new, old = (wide[..., 128 + 32 :, :], wide[..., :96, :])
    if side == "left":
        new, old = wide[..., :32, :], wide[..., 96:, :]
    assert abs(old - old[:1]).mean() < abs(new[1:] - new[:1]).mean()  # one past, many futures


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--width", 8), "--width"),
        (("--token_num", 1), "--token_num"),
        (("--num_iter", 8), "--num_iter"),
        (("--metrics", "--weights_dir", "none"), "inception-2015-12-05-6726825d.pth"),
        (("--reference", "images"), "--reference"),
        (("--vae_norm", 2), "--vae_norm"),
        (("--labels", "9"), "--labels"),
        (("--temperature", "nan"), "--temperature"),
        (("--decode_overlap", 200), "decode_overlap"),
        (("--precision", "tf32"), "--precision"),
        (("--solver", "rk4"), "--solver"),
        (("--config_path", "no.yaml"), "no.yaml"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, flags, name):
    given = ("--resume", project.generator, "--output_dir", tmp_path / "out")
    done = call("eval_generator", *project.drawing(*given, *flags))
    assert done.code == 2 and name in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_a_mistake_under_torchrun_ends_all_processes_and_is_told(project, start, tmp_path):
    given = ("--resume", project.generator, "--output_dir", tmp_path / "out", "--num_images", 0)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = start("eval_generator", *project.drawing(*given), launcher=launcher)
    assert done.code != 0
    assert "error: --num_images" in done.err
