import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import checkpoint

from ..released import released_generator


def pictures(folder: Path) -> np.ndarray:
    files = sorted((folder / "images").glob("*.png"))
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def drawn(project, call, tmp_path_factory) -> Path:
    """Five images, in batches of two."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    flags = project.drawing("--resume", project.generator, "--output_dir", folder)
    done = call("eval_generator", *flags)
    assert (done.code, done.out) == (0, f"images: {folder / 'images'}\n"), done.err
    return folder


@pytest.fixture
def draw(project, call, tmp_path):
    def run(*flags, out=tmp_path / "out"):
        given = ("--resume", project.generator, "--output_dir", out)
        return call("eval_generator", *project.drawing(*given, *flags))

    return run


def test_images_and_the_settings_they_were_made_with(drawn, together):
    """The same ones of two processes."""
    images, two = pictures(drawn), together / "images"
    assert images.shape == (5, 64, 128, 3)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5
    settings, other = (json.loads((f / "settings.json").read_text()) for f in (drawn, two))
    expected = {"cfg": 2.0, "solver": "euler", "steps": 2, "columns": 16, "precision": "fp32"}
    assert settings.items() >= expected.items()
    assert other == settings and files(two) == files(drawn)


def test_a_broken_run_goes_on_and_mixes_nothing_in(drawn, draw, tmp_path):
    out = tmp_path / "out"
    assert draw("--eval_bsz", 5).code == 0
    assert abs(pictures(out) - pictures(drawn)).max() <= 1  # the same in every batch
    for changed, name in [
        (("--cfg", 3), "made with cfg 2.0"),
        (("--precision", "bf16"), "made with precision"),
        (("--raw",), "made with generator"),
        (("--num_images", 4), "found 000004.png"),
    ]:
        done = draw(*changed)
        assert done.code == 2 and name in done.err, done.err

    for file in (out / "images").iterdir():
        file.unlink()
    assert draw().code == 0
    times = {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    (out / "images" / "000001.png").unlink()
    (out / "images" / ".000004.png.77.tmp").write_bytes(b"begun when it was killed")
    assert draw().code == 0
    (out / "images" / ".000004.png.77.tmp").unlink()
    assert files(out) == files(drawn)
    again = {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    kept = {name for name, time in times.items() if again[name] == time}
    assert kept == {f"00000{k}.png" for k in (0, 2, 3, 4)}


def test_a_checkpoint_under_the_released_names(project, drawn, draw, tmp_path, size_flags):
    ours = checkpoint.load(project.generator / "checkpoint-last.pth")
    released = {k: released_generator(ours[k]) for k in ("model", "model_ema")}
    checkpoint.save(tmp_path / "released.pth", released)
    assert draw("--resume", tmp_path, "--ckpt", "released.pth", *size_flags).code == 0
    assert abs(pictures(tmp_path / "out") - pictures(drawn)).max() <= 1


def test_images_are_measured_as_compute_metrics_measures_them(drawn, draw, call, tmp_path):
    reference = tmp_path / "reference"
    assert draw("--seed", 1, out=reference).code == 0
    measuring = ("--extractor", "random")
    done = draw(*measuring, "--reference", reference / "images", "--metrics", out=drawn)
    assert done.code == 0, done.err
    record = json.loads((drawn / "metrics.json").read_text())
    assert record["sampling"]["sampled"] == 0 and record["sampling"]["seed"] == 0
    folders = (drawn / "images", reference / "images")
    assert call("compute_metrics", *folders, *measuring, "--json", tmp_path / "m.json").code == 0
    assert record["figures"] == json.loads((tmp_path / "m.json").read_text())["figures"]
    assert {"random_features_distance", "random_features_score"} <= record["figures"].keys()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_given_image_is_continued(drawn, draw, tmp_path, side):
    given = ("--prefix_image", drawn / "images" / "000000.png", "--prefix_side", side)
    done = draw(*given)
    assert done.code == 2 and "--token_num: found 16" in done.err
    assert draw(*given, "--token_num", 24).code == 0
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
        (("--metrics", "--weights_dir", "none"), "inception-2015-12-05-6726825d.pth"),
        (("--reference", "images"), "--reference"),
        (("--vae_norm", 2), "--vae_norm"),
        (("--labels", "9"), "--labels"),
        (("--decode_overlap", 200), "decode_overlap"),
        (("--precision", "tf32"), "--precision"),
    ],
)
def test_mistakes_are_named(draw, tmp_path, flags, name):
    done = draw(*flags)
    assert done.code == 2 and name in done.err, done.err
    assert not (tmp_path / "out").exists()
