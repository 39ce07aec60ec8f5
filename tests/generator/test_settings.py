from __future__ import annotations

import argparse
from dataclasses import asdict, fields

import pytest

from common.errors import UserError
from generator.settings import TrainingConfig, add_training_flags, given, resumed


def parse(*words):
    parser = argparse.ArgumentParser(prog="x")
    add_training_flags(parser)
    return parser, given(parser.parse_args(list(map(str, words))))


def test_the_defaults_are_the_papers():
    config = TrainingConfig(**parse()[1])
    paper = {"epochs": 1200, "warmup_epochs": 100, "blr": 1e-4, "weight_decay": 0.02}
    paper |= {"grad_clip": 3.0, "ema_rate": 0.9999, "label_drop_prob": 0.1, "shift_num": 16}
    paper |= {"diffusion_batch_mul": 4, "lr_schedule": "constant", "batch_size": 64}
    assert paper.items() <= asdict(config).items()


def test_what_is_given_is_known_from_what_is_not():
    words = ("--epochs", 1200, "--lr", 3e-4, "--no-compile", "--grad_checkpointing", "--float32")
    _, found = parse(*words, "--train_columns", "0-3,8")
    assert found == {
        "epochs": 1200, "lr": 3e-4, "compile": False, "grad_checkpointing": True,
        "precision": "fp32", "train_columns": "0-3,8",
    }  # fmt: skip


def test_one_rate_is_enough():
    with pytest.raises(UserError, match=r"--blr: found 0.0002 together with --lr 0.001, expected"):
        parse("--blr", 2e-4, "--lr", 1e-3)


def test_every_setting_is_explained_with_its_default():
    text = " ".join(parse()[0].format_help().split())
    for setting in fields(TrainingConfig):
        assert f"--{setting.name}" in text and setting.metadata["help"][:40] in text
        if setting.default not in (None, False):
            assert f"(default {setting.default})" in text


def test_the_rate_grows_with_the_global_batch():
    assert TrainingConfig(batch_size=64).rate(8) == pytest.approx(2e-4)
    assert TrainingConfig(batch_size=16, accumulate=4).rate(8) == pytest.approx(2e-4)
    assert TrainingConfig(lr=5e-4).rate(8) == 5e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs: found 0, expected at least 1"),
        ({"batch_size": 0}, "--batch_size: found 0, expected at least 1"),
        ({"lr": -1.0}, "--lr: found -1.0, expected at least 0"),
        ({"blr": float("nan")}, "--blr: found nan, expected at least 0"),
        ({"ema_rate": 1.0}, r"--ema_rate: found 1.0, expected a number in \[0, 1\)"),
        ({"label_drop_prob": 1.5}, r"--label_drop_prob: found 1.5, expected a number in \[0, 1\]"),
        ({"lr_schedule": "step"}, "--lr_schedule: found step, expected one of constant, cosine"),
        ({"precision": "fp16"}, "--precision: found fp16, expected one of fp32, tf32, bf16, auto"),
        ({"subsequence": 2, "train_columns": "0"}, "--subsequence: given together with --train_co"),
    ],
)
def test_values_that_cannot_be_are_named(values, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**values)


def test_a_run_goes_on_with_its_own_settings_but_for_those_given():
    stored = asdict(TrainingConfig(epochs=7, lr=1e-3, ema_rate=0.5, seed=3))
    assert resumed(stored, {}, "x") == (TrainingConfig(**stored), [])
    after, lines = resumed(stored, {"epochs": 9, "ema_rate": 0.5, "blr": 2e-4}, "x")
    assert (after.epochs, after.lr, after.blr, after.ema_rate) == (9, None, 2e-4, 0.5)
    assert lines == [
        "--blr: 0.0001 so far, 0.0002 from here on",
        "--epochs: 7 so far, 9 from here on",
        "--lr: 0.001 so far, None from here on",
    ]


def test_a_seed_stays():
    stored = asdict(TrainingConfig(seed=3))
    assert resumed(stored, {"seed": 3}, "x")[1] == []
    with pytest.raises(UserError, match="--seed: found 4, expected 3, with which x was made"):
        resumed(stored, {"seed": 4}, "x")


def test_settings_of_another_version_are_refused():
    stored = asdict(TrainingConfig())
    del stored["grad_clip"]
    with pytest.raises(
        UserError, match=r"x: its settings are not .* the first to differ is grad_c"
    ):
        resumed(stored, {}, "x")
