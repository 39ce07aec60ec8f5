from __future__ import annotations

import logging
import warnings

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from common.distributed import Process
from common.errors import UserError
from tokenizer import trainer as subject
from tokenizer.callbacks import Progress
from tokenizer.trainer import AveragedGradients, build_trainer, quieten

CPU = torch.device("cpu")
ALONE = Process(0, 0, 1, CPU)


def test_a_trainer_of_one_process(tmp_path):
    trainer = build_trainer(tmp_path, {"max_epochs": 3, "precision": "bf16-mixed"}, ALONE, True)
    assert trainer.max_epochs == 3 and trainer.precision == "bf16-mixed"
    assert trainer.num_devices == trainer.num_nodes == 1
    saved = {c.filename: c.monitor for c in trainer.callbacks if isinstance(c, ModelCheckpoint)}
    assert saved == {"last": None, "best": "val/psnr"}
    trainer = build_trainer(tmp_path, {}, ALONE, validates=False)
    saved = [c.filename for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
    assert saved == ["last"]


def test_processes_and_machines(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(subject.config, "construct", lambda *_, **g: found.update(g))
    build_trainer(tmp_path, {}, Process(5, 1, 8, CPU, local_world=4), True)
    assert (found["accelerator"], found["devices"], found["num_nodes"]) == ("cpu", 4, 2)
    assert isinstance(found["strategy"], AveragedGradients)
    assert not found["use_distributed_sampler"]
    build_trainer(tmp_path, {}, Process(0, 0, 1, torch.device("cuda", 3)), True)
    assert (found["accelerator"], found["devices"], found["strategy"]) == ("gpu", [3], "auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_epoch": 3},
            r"lightning\.trainer\.max_epoch: unknown key; did you mean 'max_epochs'",
        ),
        ({"max_epochs": "x"}, r"lightning\.trainer\.max_epochs: found 'x'"),
        ({"devices": 2}, r"lightning\.trainer\.devices: "),
        ({"gradient_clip_val": 1.0}, r"no effect here; expected model\.params\.grad_clip"),
        ({"precision": "16-mixed"}, "found '16-mixed', expected bf16-mixed or 32-true"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_trainer(tmp_path, options, ALONE, True)


@pytest.mark.parametrize(("terminal", "rate"), [(True, 1), (False, 100)])
def test_a_bar_in_a_file_is_seldom_renewed(monkeypatch, terminal, rate):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert Progress().refresh_rate == rate


def test_warnings_that_matter_are_heard():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quieten()
        warnings.warn("Found 7 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in heard] == ["something else"]
    assert not logging.getLogger("pytorch_lightning").isEnabledFor(logging.INFO)
