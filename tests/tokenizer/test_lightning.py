"""Training of a tiny tokenizer, in this process."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback

from common import checkpoint, images
from common.data.loader import DataModule
from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws
from common.signals import Interrupted
from tokenizer import lightning, load_tokenizer
from tokenizer.callbacks import Checkpoints
from tokenizer.lightning import TokenizerModule
from tokenizer.trainer import build_trainer, quieten

ALONE = Process(0, 0, 1, torch.device("cpu"))
# The objective without networks that have to be downloaded.
PLAIN = {"perceptual_weight": 0, "disc_type": "patchgan", "semantic_loss_w": 0}
PARAMS = {
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
    "std": 0.3,
    "ema_decay": 0.9,
    "learning_rate": 1e-3,
    "scheduler_config": {"warm_up_steps": 2},
    "lossconfig": {
        "target": "tokenizer.losses.objective.Objective",
        "params": {**PLAIN, "disc_start": 3, "disc_width": 4},
    },
}


def panoramas(length, seed=0):
    return {"target": "common.panoramas.dataset.Panoramas",
            "params": {"length": length, "size": 32, "seed": seed}}  # fmt: skip


class Signal(Callback):
    """Sends this process a signal after an update."""

    def __init__(self, number, update):
        self.number, self.update = number, update

    def on_train_batch_end(self, trainer, module, *_):
        if module.step == self.update and module.between_updates:
            os.kill(os.getpid(), self.number)


def train(
    folder, epochs=2, validation=True, resume=None, params=PARAMS, after=None, workers=0, **options
):
    """A run of batches of three; two batches an epoch, or what `pictures` of them make.

    `after` is a signal and the update after which it comes.
    """
    quieten()
    pictures = options.pop("pictures", 7)
    data = DataModule(
        3, panoramas(pictures), panoramas(5, seed=1) if validation else None, num_workers=workers
    )
    torch.manual_seed(0)
    module = TokenizerModule(**copy.deepcopy(params))
    options = {"max_epochs": epochs, "log_every_n_steps": 1, "enable_progress_bar": True} | options
    callbacks = [*options.pop("callbacks", []), *([Signal(*after)] if after else [])]
    callbacks.append(Checkpoints(folder / "checkpoints" / "last.ckpt", ALONE))
    trainer = build_trainer(folder, options, ALONE, validation, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, trainer


def state(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, *train(folder, epochs=3)


def test_a_resumed_run_is_an_unbroken_one(unbroken, tmp_path):
    folder, whole, _ = unbroken
    train(tmp_path, epochs=1)
    module, trainer = train(tmp_path, 3, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert module.step == whole.step == trainer.global_step == 6
    expected = state(folder)
    assert "objective.discriminator.stack.0.weight" in expected
    for name, value in state(tmp_path).items():
        assert torch.equal(value, expected[name]), name


def optimizer_states(folder):
    file = checkpoint.load(folder / "checkpoints" / "last.ckpt")
    return [state["state"] for state in file["optimizer_states"]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_killed_after_any_update_goes_on_as_if_it_had_not_been(tmp_path, accumulate):
    """Six updates in two epochs, with adversary, EMA, schedule and validation."""
    params = {**PARAMS, "accumulate": accumulate}
    given = {"params": params, "pictures": 9 * accumulate, "num_sanity_val_steps": 0}
    train(tmp_path / "whole", **given)
    expected, moments = state(tmp_path / "whole"), optimizer_states(tmp_path / "whole")
    for update in range(1, 7):
        folder = tmp_path / str(update)
        last = folder / "checkpoints" / "last.ckpt"
        with pytest.raises(Interrupted):
            train(folder, after=(signal.SIGTERM, update), workers=update % 2, **given)
        assert state(folder)["ema.updates"] == update
        module, _ = train(folder, resume=last, **given)
        assert module.step == 6
        for name, value in state(folder).items():
            # the scale is measured in validation, which an epoch left at its end goes without
            if not name.endswith("token_scale"):
                assert torch.equal(value, expected[name]), (update, name)
        for found, known in zip(optimizer_states(folder), moments, strict=True):
            for index, values in known.items():
                for key, value in values.items():
                    assert torch.equal(found[index][key], value), (update, index, key)


def test_a_run_killed_in_validation_goes_on_with_the_next_epoch(unbroken, tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(Interrupted):
        train(tmp_path, epochs=3, callbacks=[SignalInValidation(4)])
    assert state(tmp_path)["ema.updates"] == 4
    module, trainer = train(tmp_path, epochs=3, resume=last)
    assert module.step == 6 and trainer.current_epoch == 3
    expected = state(unbroken[0])
    for name, value in state(tmp_path).items():
        assert torch.equal(value, expected[name]), name


def test_the_best_checkpoint_can_be_gone_on_from(unbroken, tmp_path):
    train(tmp_path, epochs=1)
    best = tmp_path / "checkpoints" / "best.ckpt"
    train(tmp_path, epochs=3, resume=best)
    expected = state(unbroken[0])
    for name, value in state(tmp_path).items():
        assert torch.equal(value, expected[name]), name


class SignalInValidation(Callback):
    def __init__(self, update):
        self.update = update

    def on_validation_batch_end(self, trainer, module, _, __, index, *___):
        if module.step == self.update and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("given", "updates"),
    [
        ({"epochs": 3, "pictures": 9}, [3, 4, 5, 6, 7, 9]),
        ({"epochs": 3, "pictures": 9}, ["3", 5, "6", 8]),  # in validation those in quotes
        ({"epochs": 2, "pictures": 12, "val_check_interval": 2}, ["2", 3, 4, "6", 7]),
        ({"epochs": -1, "pictures": 9, "max_steps": 7}, [2, 3, 6]),
    ],
)
def test_a_run_may_be_killed_again_and_again(tmp_path, given, updates):
    given = {**given, "num_sanity_val_steps": 0}
    whole, _ = train(tmp_path / "whole", **given)
    folder, resume = tmp_path / "killed", None
    for update in updates:
        how = {"callbacks": [SignalInValidation(int(update))]}
        if isinstance(update, int):
            how = {"after": (signal.SIGTERM, update)}
        with pytest.raises(Interrupted):
            train(folder, resume=resume, **how, **given)
        resume = folder / "checkpoints" / "last.ckpt"
        assert state(folder)["ema.updates"] == int(update)
    module, _ = train(folder, resume=resume, **given)
    assert module.step == whole.step
    expected = state(tmp_path / "whole")
    for name, value in state(folder).items():
        if not name.endswith("token_scale"):  # see above
            assert torch.equal(value, expected[name]), name


def test_a_signal_asks_for_a_checkpoint_and_training_goes_on(tmp_path, capsys):
    module, _ = train(tmp_path, epochs=1, pictures=9, after=(signal.SIGUSR1, 2))
    assert module.step == 3
    assert "checkpoint after 2 updates" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_steps_are_those_of_the_autoencoder(unbroken):
    _, module, trainer = unbroken
    autoencoder, discriminator = trainer.optimizers
    assert module.step == trainer.global_step == int(module.ema.updates) == 6
    steps = [{int(s["step"]) for s in o.state.values()} for o in (autoencoder, discriminator)]
    assert steps == [{6}, {3}]  # the discriminator takes part from step 3 on


def test_the_average_is_neither_the_start_nor_the_end(unbroken):
    module = unbroken[1]
    pairs = zip(module.ema.model.parameters(), module.tokenizer.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert not any(p.requires_grad for p in module.ema.parameters())


def test_the_checkpoint_carries_the_scale_of_the_tokens(tmp_path):
    module, trainer = train(tmp_path, epochs=1)
    tokenizer = load_tokenizer(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.equal(tokenizer.token_scale, module.ema.model.token_scale)
    dataset = trainer.datamodule.datasets["validation"]
    pictures = images.to_float(torch.stack([dataset[i][0] for i in range(len(dataset))]))
    draws = BatchDraws(torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = tokenizer.encode(pictures)
        tokens = torch.cat([tokenizer.sample_tokens(posterior, draws) for _ in range(50)])
    assert float(tokenizer.token_scale) != 1
    assert tokens.std().item() == pytest.approx(1, abs=0.15)


def test_rates(unbroken):
    rates = [
        group["lr"] for optimizer in unbroken[2].optimizers for group in optimizer.param_groups
    ]
    assert rates == [1e-3, 1e-3]
    module = unbroken[1]
    assert [module.schedule.multiplier(n) for n in range(4)] == [0, 0.5, 1, 1]


def test_the_last_checkpoint_is_the_newest_and_the_best_the_best(tmp_path, monkeypatch):
    values = iter([10.0, 30.0, 20.0])
    current = {"epoch": None, "value": None}

    def means(self, device):
        if current["epoch"] != current["trainer"].current_epoch:
            current.update(epoch=current["trainer"].current_epoch, value=next(values))
        return {"psnr": current["value"]}

    class Module(TokenizerModule):
        def on_fit_start(self):
            current["trainer"] = self.trainer
            super().on_fit_start()

    monkeypatch.setattr(lightning.Fidelity, "means", means)
    monkeypatch.setitem(globals(), "TokenizerModule", Module)
    train(tmp_path, epochs=3, num_sanity_val_steps=0)
    found = {name: checkpoint.load(tmp_path / "checkpoints" / f"{name}.ckpt")["epoch"]
             for name in ("last", "best")}  # fmt: skip
    assert found == {"last": 2, "best": 1}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_discriminator_learns_to_tell_images_apart(unbroken):
    """It judges images of 32 pixels, and its weights have left their start."""
    module = unbroken[1]
    torch.manual_seed(0)
    start = TokenizerModule(**copy.deepcopy(PARAMS)).objective.discriminator
    logits = module.objective.discriminator(torch.zeros(2, 3, 32, 32))
    assert logits.shape[:2] == (2, 1) and logits.isfinite().all()
    name = "stack.0.weight"
    assert not torch.equal(
        start.state_dict()[name], module.objective.discriminator.state_dict()[name]
    )


def test_an_adversary_from_the_first_step_on_stays_finite(tmp_path):
    """200 updates with the adaptive weight, at a high rate."""
    loss = {**PARAMS["lossconfig"]["params"], "disc_start": 0}
    params = {**PARAMS, "lossconfig": {**PARAMS["lossconfig"], "params": loss}}
    _, trainer = train(tmp_path, epochs=1, pictures=600, params=params, validation=False)
    with (Path(trainer.loggers[1].log_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    pixel = [float(row["train/pixel"]) for row in rows]
    assert sum(pixel[-20:]) < 0.8 * sum(pixel[:20])


def trained(folder, resume=None, epochs=1, **params):
    """After updates with the adversary from the first on, all weights but their averages."""
    loss = {**PARAMS["lossconfig"]["params"], "disc_start": 0}
    params = {**PARAMS, "lossconfig": {**PARAMS["lossconfig"], "params": loss}, **params}
    params["scheduler_config"] = {}
    train(folder, epochs, False, resume, params, pictures=12)
    return {k: v for k, v in state(folder).items() if k.startswith(("tokenizer.", "objective."))}


def deviation(found, expected):
    """The mean over all weights; an update moves each by about 1e-3."""
    assert found.keys() == expected.keys()
    differences = [(found[k].float() - v.float()).abs().flatten() for k, v in expected.items()]
    return torch.cat(differences).mean().item()


@pytest.mark.parametrize("option", ["grad_checkpointing", "channels_last"])
def test_what_is_for_speed_leaves_the_result(tmp_path, option):
    expected = trained(tmp_path / "plain")
    assert deviation(trained(tmp_path / "fast", **{option: True}), expected) < 1e-5
    start = trained(tmp_path / "start", learning_rate=0.0)
    assert deviation(start, expected) > 1e-3


def test_the_layout_may_change_on_the_way(tmp_path):
    expected = trained(tmp_path / "plain", epochs=2)
    trained(tmp_path / "changed")
    last = tmp_path / "changed" / "checkpoints" / "last.ckpt"
    assert deviation(trained(tmp_path / "changed", last, 2, channels_last=True), expected) < 2e-5


@pytest.mark.long
def test_a_compiled_network_trains_the_same(tmp_path):
    found = trained(tmp_path / "compiled", compile=True)
    assert deviation(found, trained(tmp_path / "plain")) < 1e-5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scheduler_config": {"warmup": 1}}, r"scheduler_config\.warmup: unknown key"),
        ({"scheduler_config": {"decay": "x"}}, r"scheduler_config\.decay: found 'x', expected flo"),
        ({"ema_decay": 1.0}, r"ema_decay: found 1\.0, expected a number in \[0, 1\)"),
        ({"embed_dim": 0}, "embed_dim: found 0, expected 1 or more"),
        ({"grad_clip": -1.0}, r"grad_clip: found -1\.0, expected 0 or more"),
        ({"learning_rate": -1.0}, r"base_learning_rate: found -1\.0, expected 0 or more"),
        ({"lossconfig": {"target": "x"}}, r"lossconfig\.target: found 'x'"),
    ],
)
def test_settings_that_cannot_be_are_named(params, message):
    with pytest.raises(UserError, match=message):
        TokenizerModule(**{**copy.deepcopy(PARAMS), **params})
