"""Scripts that need no trained models."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common import checkpoint
from common.images import save_image
from scripts import benchmark, check_parity, model_table

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def run(monkeypatch, capsys):
    """Lines that a script prints."""

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, flags)])
        capsys.readouterr()
        script.main()
        return capsys.readouterr().out.splitlines()

    return call


def test_check_parity_lists_every_error_and_fails_on_a_large_one(run, tmp_path, capsys):
    good, bad = REFERENCE / "generator_a.safetensors", tmp_path / "corrupted.safetensors"
    tensors = checkpoint.load(good)
    tensors["hidden"][0, 0, 0] += 0.01
    save_file(tensors, bad, checkpoint.load_metadata(good))
    heading, *lines = run(check_parity, good)
    assert heading == str(good)
    errors = dict(line.split() for line in lines)
    assert len(errors) == 11 and max(map(float, errors.values())) < 1e-3
    with pytest.raises(SystemExit, match="1"):
        run(check_parity, good, bad)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if "above" in line] == ["hidden"]


def test_model_table_agrees_with_the_paper():
    with torch.device("meta"):
        base = [model_table.generator_cost("base_model", **g) for g in ({}, model_table.GRID)]
        fine = model_table.generator_cost("base_model", **model_table.FINE)
        tokenizer = model_table.tokenizer_cost()
        assert model_table.tokenizer_cost(4) == tokenizer
    assert [round(row["parameters"] / 1e6, 3) for row in base] == [295.587] * 2
    assert [round(row["multiply_adds"] / 1e9, 2) for row in base] == [9.78, 9.79]
    assert fine["multiply_adds"] / 1e9 == pytest.approx(130.46, rel=0.01)
    semantic = 67.66 - 21.24  # those that run
    expected = 86.05 + 2 * 3.15 + 121.55 + semantic
    assert tokenizer["parameters"] / 1e6 == pytest.approx(expected, abs=0.03)


@pytest.mark.long
def test_the_benchmark_writes_what_it_has(run, tmp_path):
    file = tmp_path / "speed.json"
    sizes = ("--model", "tiny_model", "--batch", 1, "--columns", 2, "--num_sampling_steps", 1)
    run(benchmark, "sampling", *sizes, "--device", "cpu", "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["times_faster"] > 0
    for k in range(4):
        save_image(tmp_path / "images" / "sea" / f"{k}.jpg", torch.zeros(3, 40, 50))
    more = ("--workers", 0, "--batch_size", 4, "--json", file)
    run(benchmark, "loading", tmp_path / "images", *more)
    assert [row["per_s"] > 0 for row in json.loads(file.read_text())["rows"]] == [True]
