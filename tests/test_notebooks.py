"""The notebooks run from top to bottom, and what is kept of them opens well anywhere."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_500_000
# what a page that shows notebooks would have to download, or would not show at all
PLAIN = {"text/plain", "image/png"}


def run(*flags: object, **variables: object) -> subprocess.CompletedProcess[str]:
    """`scripts/run_notebooks.py`, on one thread, from a folder that is not the repository's."""
    # PYTHONPATH takes the place of an installation
    fixed = {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_notebooks.py", *map(str, flags)],
        env=os.environ | {name: str(value) for name, value in (fixed | variables).items()},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs]


def pictures(path: Path) -> list[Image.Image]:
    data = [output.get("data", {}).get("image/png") for output in outputs(path)]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in data if text]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """The folder of all notebooks, executed on models that the first of them trains a little."""
    folder = tmp_path_factory.mktemp("notebooks")
    photo = folder / "photo.png"
    Image.effect_noise((90, 50), 64).save(photo)
    done = run(
        *("--output_dir", folder),
        QUICKSTART_RUN=folder / "run",
        QUICKSTART_FLAGS="--tiny --device cpu",
        PICTURE=photo,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_quickstart_trains_draws_and_goes_on_with_pictures(executed):
    path = executed / "quickstart.ipynb"
    assert len(nbformat.read(path, as_version=4).cells) <= 10
    assert (executed / "run" / "report.html").exists()
    assert len(pictures(path)) == 2


def test_the_meaning_of_tokens_is_shown_for_a_picture_of_the_users_own(executed):
    path = executed / "token_meaning.ipynb"
    frames = [picture.n_frames for picture in pictures(path) if picture.format == "GIF"]
    assert frames == [17]  # of no token to 16
    assert len(pictures(path)) == 6
    told = "".join(output.get("text", "") for output in outputs(path))
    assert "64 × 64 pixels: 16 tokens" in told
    assert told.count("width of influence") == 3


def test_a_missing_model_is_said_in_one_line_and_nothing_is_written(tmp_path):
    source = ROOT / "notebooks" / "token_meaning.ipynb"
    done = run(source, "--output_dir", tmp_path, QUICKSTART_RUN="absent")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: token_meaning.ipynb: UserError: absent/tokenizer.ckpt: not found; "
        "run `make quickstart`, or set TOKENIZER to another"
    )
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_no_notebook(tmp_path):
    for path in (ROOT / "LICENSE", tmp_path / "absent.ipynb"):
        done = run(path, "--output_dir", tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert done.stderr.startswith(f"error: {path}: ")


def test_there_are_notebooks():
    assert [path.name for path in COMMITTED] == ["quickstart.ipynb", "token_meaning.ipynb"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_was_executed_once_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_shows_results_alone(path):
    found = outputs(path)
    assert {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in found} == {"stdout"}  # no warning, no bar
    assert {kind for output in found for kind in output.get("data", {})} <= PLAIN
    assert not any("\r" in output.get("text", "") for output in found)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [output.get("text", "") for output in outputs(path)]
    texts += [cell.source for cell in notebook.cells]
    assert [t for t in texts if re.search(r"(?:^|[\s'\"=(])(?:/|~|file:|[A-Z]:\\)\w", t)] == []
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == notebook.metadata.language_info.name + "3"
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_its_cells_are_named(path):
    assert path.stat().st_size < MOST_BYTES
    assert all(picture.width <= 1000 for picture in pictures(path))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [c.id for c in notebook.cells if not re.fullmatch(r"[a-z]+(-[a-z]+)*", c.id)] == []
