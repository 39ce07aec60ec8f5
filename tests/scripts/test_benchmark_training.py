from __future__ import annotations

import json

import pytest


def test_every_figure_has_its_conditions(project, call, tmp_path):
    path = tmp_path / "figures.json"
    flags = ("--models", "tiny_model", "--batch_size", 2, "--seconds", 0.1, "--device", "cpu")
    given = ("--config_path", project.tokenizer_yaml, "--class_num", 5, "--diffusion_batch_mul", 2)
    done = call("benchmark_training", *flags, *given, "--output", path)
    assert done.code == 0, done.err
    record = json.loads(path.read_text())
    assert record["training"]["batch_size"] == 2 and record["conditions"]["cores"] >= 1
    entry = record["tiny_model"]
    for kind in ("cached", "online"):
        found = entry[kind]
        assert 0 < found["slowest"] <= found["images_per_s"] <= found["fastest"]
        expected = found["flops_an_image"] * found["images_per_s"] / entry["peak_flops_per_s"]
        assert found["share_of_peak"] == pytest.approx(expected)
        assert f"{found['images_per_s']:.1f}" in done.out
    # forward, and twice as much backward, of the products of 7 columns and 16 class tokens at 256
    # channels in 8 layers, and of 16 draws in a head of width 512 with 6 blocks
    layer = 7 * (4 + 2 + 8) + 16 * (2 + 8)
    block, ends = 6 * (2 + 3) + 1, 2  # in the head's width
    head = (block + ends) * 512**2 + 256 * 512 + 2 * 4 * 512
    macs = 8 * layer * 256**2 + 16 * head
    assert entry["cached"]["flops_an_image"] == pytest.approx(6 * macs, rel=0.05)
    assert entry["online"]["flops_an_image"] > entry["cached"]["flops_an_image"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models", "tiny_model,giant_model"), "--models: found 'giant_model', expected some of"),
        (("--batch_size", 0), "--batch_size: found 0, expected at least 1"),
        (("--config_path", "no.yaml"), "no.yaml: cannot read this configuration"),
    ],
)
def test_mistakes_are_named(call, flags, message):
    done = call("benchmark_training", *flags)
    assert done.code == 2 and message in done.err
