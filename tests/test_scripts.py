"""Scripts as their users start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.images import save_image

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "reference"


def run(name: str, *flags: object) -> subprocess.CompletedProcess[str]:
    """A script, from the root of the repository, on one thread."""
    # PYTHONPATH takes the place of an installation
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, f"scripts/{name}.py", *map(str, flags)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_check_parity_lists_every_error_and_fails_on_a_large_one(tmp_path):
    good = REFERENCE / "generator_a.safetensors"
    tensors = checkpoint.load(good)
    tensors["hidden"][0, 0, 0] += 0.01
    bad = tmp_path / "corrupted.safetensors"
    checkpoint.save_safetensors(bad, tensors, checkpoint.load_metadata(good))

    done = run("check_parity", good)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.splitlines()
    assert heading == str(good)
    errors = dict(line.split() for line in lines)
    assert len(errors) == 11 and max(map(float, errors.values())) < 1e-3

    done = run("check_parity", good, bad)
    assert done.returncode == 1
    marked = [line.split()[0] for line in done.stdout.splitlines() if "above" in line]
    assert marked == ["hidden"]


# millions of parameters, thousand millions of multiply-adds (paper, generator table; the released
# code counts 127 million parameters for the small model)
GENERATORS = {
    "small_model": (127.311, 5.41),
    "base_model": (295.587, 9.78),
    "large_model": (644.496, 19.66),
    "huge_model": (1203.207, 34.91),
}
TOKENIZER = ("encoder", "bottleneck", "decoder")


def test_model_table_agrees_with_the_paper(tmp_path):
    done = run("model_table", "--json", tmp_path / "table.json")
    assert (done.returncode, done.stderr) == (0, "")
    table = json.loads((tmp_path / "table.json").read_text())
    for name, (parameters, multiply_adds) in GENERATORS.items():
        cost = table["generator"][name]
        assert round(cost["parameters"] / 1e6, 3) == parameters
        assert cost["multiply_adds"] / 1e9 == pytest.approx(multiply_adds, rel=0.01)
        assert f"{parameters:.3f} M" in done.stdout
    found = {k: v["parameters"] / 1e6 for k, v in table["tokenizer"].items()}
    assert sum(found[k] for k in TOKENIZER) == pytest.approx(86.05 + 2 * 3.15 + 121.55, abs=0.02)
    assert found["semantic_decoder"] == pytest.approx(67.66 - 21.24, abs=0.01)  # those that run


@pytest.mark.long
def test_the_benchmark_writes_what_it_has(tmp_path):
    file = tmp_path / "speed.json"
    sizes = ("--model", "tiny_model", "--batch", 1, "--columns", 2, "--num_sampling_steps", 1)
    done = run("benchmark", "sampling", *sizes, "--device", "cpu", "--json", file)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["times_faster"] > 0 and row["largest_difference"] < 1e-4
    for k in range(4):
        save_image(tmp_path / "images" / "sea" / f"{k}.jpg", torch.zeros(3, 40, 50))
    more = ("--size", 32, "--workers", 0, "--seconds", 0.1, "--batch_size", 4, "--json", file)
    done = run("benchmark", "loading", tmp_path / "images", *more)
    assert done.returncode == 0, done.stderr
    assert [row["per_s"] > 0 for row in json.loads(file.read_text())["rows"]] == [True]
