from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path

import pytest
import yaml

from common.peak import Shares

ROOT = Path(__file__).parents[2]
PARTS = ["autoencoder_forward", "autoencoder_backward", "discriminator", "other_terms",
         "optimizers_and_ema", "rest"]  # fmt: skip
SHORT = ("--device", "cpu", "--updates", 2, "--warmup", 1)
TOKENIZER = {
    "model": {
        "target": "tokenizer.lightning.TokenizerModule",
        "params": {
            "ddconfig": {
                "resolution": 32,
                "ch": 4,
                "ch_mult": [1, 1, 1],
                "num_res_blocks": 0,
                "z_channels": 2,
                "len_down_scale": 2,
                "norm_groups": 2,
            },
            "embed_dim": 4,
            "lossconfig": {
                "target": "tokenizer.losses.objective.Objective",
                "params": {
                    "perceptual_weight": 0,
                    "disc_type": "patchgan",
                    "disc_width": 4,
                    "semantic_loss_w": 0,
                },
            },
        },
    },
    "data": {
        "target": "common.data.loader.DataModule",
        "params": {
            "batch_size": 4,
            "train": {
                "target": "common.panoramas.dataset.Panoramas",
                "params": {"length": 6, "size": 32},
            },
        },
    },
}


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    monkeypatch.setattr("common.peak.SIDES", (64,))
    monkeypatch.setattr("common.peak.LARGE", 2**22)
    monkeypatch.setattr("common.peak.PATIENCE", 0.01)


@pytest.fixture
def benchmark(call, tmp_path):
    """The script on the tiny config; its report too, where it makes one."""

    def run(*flags, settings=TOKENIZER):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings))
        output = tmp_path / "report.json"
        output.unlink(missing_ok=True)
        done = call("benchmark_tokenizer", "-b", path, *SHORT, *flags, "--output", output)
        return done, json.loads(output.read_text()) if output.exists() else None

    return run


def last_convolution(batch: int) -> int:
    """FLOPs of the two gradients of the decoder's last weight, from 4 channels to 3, that the
    adaptive weight asks for and no part repeats."""
    return 2 * 2 * batch * 4 * 3 * 9 * 32 * 32


def test_the_report_is_complete_and_its_arithmetic_right(benchmark):
    done, report = benchmark("seed=5")
    assert (done.code, done.err) == (0, "")
    assert report["conditions"]["cores"] >= 1 and report["seed"] == report["settings"]["seed"] == 5
    assert report["settings"]["lightning"]["trainer"] == {"precision": "32-true"}
    assert report["terms"] == ["pixel", "kl", "adversarial"]
    assert report["pictures"] == {"shape": [4, 3, 32, 32], "made_up": False}
    whole, split = report["whole"], report["split"]
    assert list(split) == PARTS
    assert len(report["seconds"]) == 2
    assert report["images_per_s"] == pytest.approx(4 / whole["seconds"])
    assert report["slowest"] <= report["images_per_s"] <= report["fastest"]
    parts = {name: cost for name, cost in split.items() if name != "rest"}
    assert all(cost["seconds"] > 0 and cost["traffic"] > 0 for cost in parts.values())
    for key in ("seconds", "flops", "traffic"):
        assert sum(cost[key] for cost in split.values()) == pytest.approx(whole[key])
    assert split["rest"]["flops"] == last_convolution(4)
    assert {name for name in parts if parts[name]["flops"]} == set(PARTS[:3])
    # a gradient for the weights, and one for what comes in but where that is the images
    forward, backward = (split[name]["flops"] for name in PARTS[:2])
    assert 1.5 * forward < backward < 2 * forward
    assert report["peak_memory"] > 2**25
    peak, shares = report["peak"], report["shares"]
    expected = whole["flops"] / peak["flops_per_s"] / whole["seconds"]
    assert shares["arithmetic"] == pytest.approx(expected)
    expected = whole["traffic"] / peak["bytes_per_s"] / whole["seconds"]
    assert shares["traffic"] == pytest.approx(expected)
    assert shares["launching"] is None
    assert report["loading"]["num_workers"] == 0 and report["loading"]["images_per_s"] > 0
    for shown in (
        "terms, whatever their start step: pixel, kl, adversarial",
        f"{report['images_per_s']:.4g} images/s",
        "autoencoder, backward",
        "discriminator",
        "optimizers and EMA",
        "whole update",
        f"delivers {report['loading']['images_per_s']:.4g} images/s",
        "At the measured peaks, arithmetic would take",
    ):
        assert shown in done.out


def test_every_flag_of_speed_reaches_training(benchmark):
    flags = ("--channels_last", "--grad_checkpointing", "--precision", "bf16", "--batch_size", 3)
    twice = "lightning.trainer.accumulate_grad_batches=2"
    blocks = "model.params.ddconfig.num_res_blocks=1"
    done, report = benchmark("--no_loading", blocks, twice, *flags)
    assert (done.code, done.err) == (0, "")
    params = report["settings"]["model"]["params"]
    assert params["channels_last"] and params["grad_checkpointing"]
    assert report["precision"] == "bf16-mixed" and "precision bf16-mixed" in done.out
    assert report["accumulate"] == 2
    assert report["images_per_s"] == pytest.approx(2 * 3 / report["whole"]["seconds"])
    assert report["pictures"] == {"shape": [3, 3, 32, 32], "made_up": True}
    assert report["loading"] == {"left_out": "--no_loading"}
    assert "Loading left out: --no_loading" in done.out and "made up" in done.out
    split = report["split"]
    assert split["rest"]["flops"] == 2 * last_convolution(3)
    # the forward pass again, but for what lies outside the levels
    forward, backward = (split[name]["flops"] for name in PARTS[:2])
    assert 2.2 * forward < backward < 3 * forward


def test_frozen_networks_of_random_weights_take_all_their_passes(benchmark):
    weight = "model.params.lossconfig.params.perceptual_weight=1"
    done, report = benchmark("--random_weights", "--no_loading", weight, "--batch_size", 1)
    assert (done.code, done.err) == (0, "")
    assert report["terms"] == ["pixel", "lpips", "kl", "adversarial"]
    assert "frozen: LPIPS" in done.out and report["random_weights"]
    # forward for both images, backward for the adaptive weight and for the update
    channels, sides, convolutions = (64, 128, 256, 512, 512), (32, 16, 8, 4, 2), (2, 2, 3, 3, 3)
    once, before = 0, 3
    for width, side, count in zip(channels, sides, convolutions, strict=True):
        for _ in range(count):
            once, before = once + 2 * before * width * 9 * side**2, width
    assert report["split"]["lpips"]["flops"] == 4 * once
    assert report["split"]["rest"]["flops"] == last_convolution(1)
    done, report = benchmark("--no_loading", weight, "--weights_dir", "nowhere")
    assert done.code == 2 and "vgg16-397923af.pth: missing in" in done.err


def test_pictures_that_are_not_there_are_made_up(benchmark):
    settings = copy.deepcopy(TOKENIZER)
    params = {"root": "nowhere", "size": 32, "width": 64}
    train = {"target": "common.data.folders.ImageFolder", "params": params}
    settings["data"]["params"]["train"] = train
    settings["model"]["params"]["lossconfig"]["params"]["disc_type"] = "none"
    done, report = benchmark(settings=settings)
    assert (done.code, done.err) == (0, "")
    assert report["pictures"] == {"shape": [4, 3, 32, 64], "made_up": True}
    assert report["loading"]["left_out"].startswith("nowhere: no such folder")
    assert report["loading"]["left_out"] in done.out
    assert report["terms"] == ["pixel", "kl"]
    assert list(report["split"]) == [name for name in PARTS if name != "discriminator"]
    assert report["split"]["rest"]["flops"] == 0


@pytest.mark.parametrize(
    ("given", "shares", "bound"),
    [
        (99.0, Shares(0.9, 0.2), "loading"),
        (100.0, Shares(0.6, 0.5), "arithmetic"),
        (100.0, Shares(0.5, 0.6), "traffic"),
        (100.0, Shares(0.4, 0.4), "neither"),
        (None, Shares(0.6, 0.5, 0.5), "arithmetic"),
        (None, Shares(0.6, 0.5, 0.95), "launching"),
    ],
)
def test_what_bounds_training_follows_from_the_numbers(given, shares, bound):
    conclusion = runpy.run_path(str(ROOT / "scripts" / "benchmark_tokenizer.py"))["conclusion"]
    loading = {"images_per_s": given, "num_workers": 3} if given else {"left_out": "x"}
    found = conclusion(100.0, loading, shares)
    assert found["bound"] == bound
    first, second = found["words"]
    starts = {None: "Loading left out: x", 99.0: "Loading does not", 100.0: "Loading keeps up"}
    assert first.startswith(starts[given])
    assert f"{shares.arithmetic:.0%}" in second and f"{shares.traffic:.0%}" in second
    assert ("95%" in second) == (bound == "launching")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--updates", 0), "--updates: found 0, expected 1 or more"),
        (("--warmup", 0), "--warmup: found 0, expected 1 or more"),
        (("--batch_size", -1), "--batch_size: found -1, expected 1 or more"),
        (("--batch_size", 64), "data.params.batch_size: 64 on 1 process(es) makes a batch"),
        (("--device", "tpu"), "device: found 'tpu', expected auto, cpu, cuda or cuda:N"),
        (("modell.x=1",), "modell: unknown key; did you mean 'model'?"),
        (("data=1",), "data: found 1, expected target and params"),
        (("data.params.batch_size=x", "--no_loading"), "data.params.batch_size: found 'x'"),
        (("data.params.train.params.lenght=3",), "data.params.train.params.lenght: unknown key"),
        (("data.params.train.params.width=34",), "image width: found 34, expected a multiple"),
        (("model.params.lossconfig=3",), "model.params.lossconfig: found 3"),
        (("model.base_learning_rate=x",), "base_learning_rate: found 'x', expected float"),
        (("lightning.trainer=3",), "lightning.trainer: found 3, expected arguments"),
        (("lightning.trainer.precision=16-mixed",), "precision: found '16-mixed', expected one of"),
        (("seed=x",), "seed: found 'x', expected int"),
    ],
)
def test_mistakes_are_named(benchmark, flags, message):
    done, report = benchmark(*flags)
    assert done.code == 2 and report is None
    assert done.err.startswith("error: ") and message in done.err, done.err


def test_a_config_is_needed(call):
    done = call("benchmark_tokenizer", "--device", "cpu")
    assert done.code == 2 and done.err.startswith("error: -b/--base: no config given")
