"""`make quickstart` and the notebooks, as their users start them, on a tiny variant."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]


def run(*command: object, **variables: object) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH takes the place of an installation
    fixed = {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | {name: str(value) for name, value in (fixed | variables).items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def make(*words: object) -> subprocess.CompletedProcess[str]:
    return run("make", "-o", ".venv/.installed", "TINY=1", f"PY={sys.executable}", *words)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = make(f"RUN={folder}", "quickstart")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_the_report_holds_all_that_it_shows(quickstart):
    folder, commands = quickstart
    for name in ("train_tokenizer", "cache_latents", "train_generator", "eval_generator"):
        assert f"scripts/{name}.py" in commands
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["figures"]
    assert figures.keys() >= {"psnr", "agreement", "far_agreement", "seconds"}
    assert figures["agreement"]["count"] == 18 and figures["far_agreement"]["count"] == 9
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img[^>]*src=\"?data:image", page.replace("\n", ""))) >= 7
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?https?:", page)
    assert "Class agreement" in page and "Traceback" not in page


def test_it_goes_on_where_it_stopped(quickstart):
    folder, _ = quickstart
    assert "scripts/" not in make(f"RUN={folder}", "quickstart").stdout
    before = (folder / "generator" / "checkpoint-last.pth").read_bytes()
    for name in ("samples.done", "metrics.json"):
        (folder / name).unlink()
    lost = folder / "samples" / "images" / "000003.png"
    lost = next(p for p in sorted(lost.parent.iterdir())[3:])
    pixels = lost.read_bytes()
    lost.unlink()
    done = make(f"RUN={folder}", f"{folder}/metrics.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scripts/eval_generator.py" in done.stdout and "scripts/train_" not in done.stdout
    assert lost.read_bytes() == pixels
    assert (folder / "generator" / "checkpoint-last.pth").read_bytes() == before


def test_the_meaning_of_tokens_is_shown_for_an_image_of_the_users_own(quickstart, tmp_path):
    Image.effect_noise((90, 50), 64).save(tmp_path / "photo.png")
    execute = (sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook")
    where = (ROOT / "notebooks" / "token_meaning.ipynb", "--output-dir", tmp_path)
    done = run(*execute, *where, QUICKSTART_RUN=quickstart[0], IMAGE=tmp_path / "photo.png")
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(tmp_path / "token_meaning.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = "".join(output.get("text", "") for output in outputs)
    assert "112 × 64 pixels: 28 tokens" in told  # the whole image, cut to whole columns
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warning
    done = run(*execute, *where, QUICKSTART_RUN="absent")
    assert done.returncode != 0 and "absent/tokenizer.ckpt" in done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_plain(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_500_000
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id) for cell in notebook.cells)
    assert all(cell.metadata == {} for cell in notebook.cells)
