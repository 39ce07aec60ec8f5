from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from generator.flags import add_size_flags, check_against, flags_of, parse_with_config, sizes
from generator.model import GeneratorConfig

KNOWN = {"channels": 6, "classes": 5}


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_size_flags(parser, dropout=True)
    return parser.parse_args(list(map(str, arguments)))


def test_a_named_size_and_flags_over_it():
    config = sizes(parse("--model", "tiny_model", "--depth", 3, "--cond_length", 0), KNOWN)
    assert (config.width, config.depth, config.heads) == (256, 3, 4)
    assert (config.head_width, config.head_depth) == (512, 6)
    assert (config.window, config.channels, config.classes, config.class_tokens) == (0, 6, 5, 16)


def test_sizes_by_hand():
    flags = parse("--width", 32, "--depth", 2, "--heads", 4, "--diffloss_w", 8, "--buffer_size", 3)
    config = sizes(flags, KNOWN)
    assert (config.width, config.head_width, config.class_tokens) == (32, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model: not given, and no --width either"),
        (("--width", 32, "--depth", 2), "no --heads either"),
        (("--model", "tiny_model", "--class_num", 9), "--class_num: found 9, expected 5"),
        (("--model", "tiny_model", "--vae_embed_dim", 9), "--vae_embed_dim: found 9, expected 6"),
        (("--model", "tiny_model", "--heads", 3), "width 256 over 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        sizes(parse(*arguments), KNOWN)


def test_flags_must_agree_with_a_checkpoint():
    stored = GeneratorConfig(256, 8, 4, head_width=512, head_depth=6, **KNOWN)
    check_against(parse(), stored)
    check_against(parse("--model", "tiny_model", "--cond_length", 3, "--class_num", 5), stored)
    for arguments, message in [
        (("--model", "small_model"), "--width: found 512, but the checkpoint has 256"),
        (("--cond_length", 5), "--cond_length: found 5, but the checkpoint has 3"),
        (("--diffloss_d", 7), "--diffloss_d: found 7, but the checkpoint has 6"),
    ]:
        with pytest.raises(UserError, match=message):
            check_against(parse(*arguments), stored)


def test_sizes_give_their_flags_back():
    given = ("--model", "tiny_model", "--cond_length", 0, "--proj_dropout", 0.3)
    config = sizes(parse(*given), KNOWN)
    assert config.proj_dropout == 0.3 and config.attn_dropout == 0.1
    again = [word for flag, value in flags_of(config).items() for word in (f"--{flag}", value)]
    assert sizes(parse(*again), KNOWN) == config


@pytest.fixture
def with_file(tmp_path, monkeypatch):
    """Parse with a YAML file of these lines, and these arguments."""

    def run(text, *arguments):
        path = tmp_path / "flags.yaml"
        path.write_text(text)
        parser = argparse.ArgumentParser()
        parser.add_argument("--config")
        parser.add_argument("--lr", type=float)
        parser.add_argument("--epochs", type=int, default=10)
        parser.add_argument("--folder", type=Path)
        parser.add_argument("--schedule", choices=("constant", "cosine"))
        parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
        parser.add_argument("--float32", dest="precision", action="store_const", const="fp32")
        parser.add_argument("--cached", action="store_true")
        parser.add_argument("overrides", nargs="*")
        monkeypatch.setattr(sys, "argv", ["x", "--config", str(path), *arguments])
        return parse_with_config(parser)

    return run


def test_the_file_gives_defaults_that_the_command_line_overrides(with_file):
    text = "lr: 1e-3\nepochs: 3\nfolder: runs/a\nschedule: cosine\nprecision: bf16\ncached: true\n"
    flags = with_file(text)
    assert (flags.lr, flags.epochs, flags.folder) == (1e-3, 3, Path("runs/a"))
    assert (flags.schedule, flags.precision, flags.cached) == ("cosine", "bf16", True)
    flags = with_file(text + "overrides: [a=1]", "--epochs", "5", "--float32", "b=2")
    assert (flags.epochs, flags.precision, flags.lr) == (5, "fp32", 1e-3)
    assert flags.overrides == ["b=2"]
    assert with_file("overrides: [a=1]\nlr: null").overrides == ["a=1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz: 3", "epochz: unknown key; did you mean 'epochs'"),
        ("config: x", "config: unknown key"),
        ("epochs: 2.5", "epochs: found 2.5, expected int"),
        ("epochs: [1]", r"epochs: found \[1\], expected int"),
        ("epochs: true", "epochs: found True, expected int"),
        ("lr: fast", "lr: found 'fast', expected float"),
        ("schedule: step", "schedule: found 'step', expected one of constant, cosine"),
        ("cached: 1", "cached: found 1, expected true or false"),
        ("overrides: a=1", "overrides: found 'a=1', expected a list of str"),
        ("- 1", "expected a mapping"),
    ],
)
def test_mistakes_in_the_file_are_named(with_file, text, message):
    with pytest.raises(UserError, match=rf"flags\.yaml: .*{message}"):
        with_file(text)
