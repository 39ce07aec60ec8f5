"""The scripts that measure sampling, on models too small for their figures to mean anything."""

from __future__ import annotations

import json

import pytest
import torch


def test_the_benchmark_compares_both_samplers(call, tmp_path):
    out = tmp_path / "table.json"
    flags = ("--model", "tiny_model", "--batch", 1, 2, "--columns", 2, 3, "--plain_columns", 2)
    more = ("--num_sampling_steps", 1, "--device", "cpu")
    done = call("benchmark_sampling", *flags, *more, "--no_decoder", "--json", out)
    assert done.code == 0, done.err
    table = json.loads(out.read_text())
    assert table["settings"]["solver"] == {"method": "euler", "steps": 1, "power": 1.0}
    assert table["conditions"]["torch_threads"] >= 1
    sizes = [(row["batch"], row["columns"]) for row in table["rows"]]
    assert sizes == [(1, 2), (2, 2), (1, 3), (2, 3)]
    for row in table["rows"]:
        assert row["parts"].keys() == {"transformer", "head"}
        assert row["bound"] > 0 and 0 < row["of_bound"]["mean"] < 1.5
        assert row["engine"]["fastest"] <= row["engine"]["median"]
        assert ("times_faster" in row) == (row["columns"] == 2)
        assert row.get("largest_difference", 0) < 1e-4
    assert "times slower" in done.out and "of bound" in done.out


def test_the_benchmark_names_a_config_without_a_tokenizer(call, tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("data: 1")
    done = call("benchmark_sampling", "--config_path", path, "--device", "cpu")
    assert done.code == 2 and f"{path}: model.params: missing" in done.err


def test_solvers_are_compared(call, project, tmp_path):
    out = tmp_path / "solvers.json"
    given = ("--resume", project.generator, "--num_images", 3, "--token_num", 2, "--device", "cpu")
    done = call("compare_solvers", *given, "--json", out)
    assert done.code == 0, done.err
    table = json.loads(out.read_text())
    assert table["settings"]["reference"]["steps"] == 1000 and table["mean_token"] > 0
    # a generator after two epochs hardly moves its noise: all solvers come to the same end
    assert all(0 <= row["difference"] < 1e-3 for row in table["solvers"])
    methods = {row["method"]: row["evaluations"] / row["steps"] for row in table["solvers"]}
    assert methods == {"euler": 1, "heun": 2, "ab2": 1}
    assert len(done.out.splitlines()) == 1 + len(table["solvers"])


def test_decoding_in_pieces_is_compared(call, project, tmp_path):
    out = tmp_path / "decoding.json"
    given = ("--resume", project.generator, "--config_path", project.stage_two_yaml)
    more = ("--token_num", 20, "--lengths", 8, "--num_sampling_steps", 2, "--device", "cpu")
    done = call("compare_decoding", *given, *more, "--json", out)
    assert done.code == 0, done.err
    rows = json.loads(out.read_text())["pieces"]
    assert [row["overlap"] for row in rows] == [0, 1, 2, 4]
    assert all(row["columns"] == 8 and row["difference"] > 0 for row in rows)
    assert rows[-1]["difference"] < rows[0]["difference"]


@pytest.mark.parametrize("script", ["compare_solvers", "compare_decoding"])
def test_what_is_not_given_is_named(call, script):
    done = call(script, "--device", "cpu")
    assert done.code == 2 and "--resume: not given" in done.err


def test_products_are_measured_in_every_order(call, tmp_path):
    out = tmp_path / "products.json"
    flags = ("--width", 64, "--layers", 2, "--rows", 1, 4, "--repeats", 2, "--json", out)
    done = call("benchmark_products", *flags)
    assert done.code == 0, done.err
    rates = json.loads(out.read_text())["rates"]
    ways = list(dict.fromkeys(row["way"] for row in rates))
    assert ways[:2] == ["read", "x Wᵀ"] and [row["rows"] for row in rates] == [1, 4] * len(ways)
    assert all(row["best"] >= row["median"] > 0 for row in rates)


def test_products_are_the_same_in_every_order(load):
    """The chains that are compared compute one thing."""
    layers = [torch.nn.Linear(8, 8).requires_grad_(False) for _ in range(3)]
    for layer in layers:
        layer.bias.zero_()
    x, ends = torch.randn(5, 8), {}
    for name, chain in load("benchmark_products").candidates(layers).items():
        ends[name] = x
        for product in chain:
            ends[name] = product(ends[name])
    expected = torch.nn.Sequential(*layers)(x)
    assert torch.equal(ends.pop("read"), x)
    half = ends.pop("packed, bfloat16", expected)
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0)
    for found in ends.values():
        torch.testing.assert_close(found, expected)
