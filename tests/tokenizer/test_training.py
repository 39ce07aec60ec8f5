"""Training of a tiny tokenizer, in this process."""

import copy
import csv
import os
import signal

import pytest
import torch
import yaml

from common import checkpoint, config
from common.distributed import Process
from common.errors import Preempted, UserError
from tokenizer import callbacks, load_tokenizer, train
from tokenizer.evaluate import Evaluation
from tokenizer.lightning import WARM, TokenizerModule
from tokenizer.train import Settings, build_module

from ..released import raw_tokenizer, to_released

ALONE = Process(0, 0, 1, torch.device("cpu"))
# The objective without networks that have to be downloaded.
PARAMS = yaml.safe_load("""
ddconfig: {resolution: 32, ch: 4, ch_mult: [1, 1, 1], num_res_blocks: 0, z_channels: 2,
           len_down_scale: 2, norm_groups: 2}
embed_dim: 4
std: 0.3
ema_decay: 0.9
scheduler_config: {warm_up_steps: 2}
lossconfig:
  target: tokenizer.losses.objective.Objective
  params: {perceptual_weight: 0, disc_type: patchgan, semantic_loss_w: 0, disc_start: 3,
           disc_width: 4, disc_num_layers: 2}
""")


def panoramas(length, seed=0):
    return {"target": "common.panoramas.dataset.Panoramas",
            "params": {"length": length, "size": 32, "seed": seed}}  # fmt: skip


def settings(images=7, validation=True, workers=0, loss=None, seed=0, lightning=None, **params):
    """Batches of three: two of them an epoch, or what `images` make."""
    given = copy.deepcopy(PARAMS) | {k: v for k, v in params.items() if k not in TRAINER}
    given["lossconfig"].setdefault("params", {}).update(loss or {})
    options = {"max_epochs": 2, "log_every_n_steps": 1}
    options |= {k: v for k, v in params.items() if k in TRAINER}
    data = {"batch_size": 3, "num_workers": workers, "train": panoramas(images)}
    data |= {"validation": panoramas(5, seed=1)} if validation else {}
    return config.structured(
        Settings,
        {
            "model": {"params": given, "base_learning_rate": 1e-3},
            "data": {"target": "common.data.loader.DataModule", "params": data},
            "lightning": {"trainer": options, **(lightning or {})},
            "seed": seed,
        },
    )


TRAINER = ("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch")


def run(folder, resume=None, after=(0, 0), **given):
    """Train, with a signal `after` (number, update) or in the validation after update `-update`."""
    number, update = after
    apply, validate = TokenizerModule.apply_gradients, callbacks.RunFolder._validate

    def in_update(module, *args):
        if module.step == update - 1:
            os.kill(os.getpid(), number)
        return apply(module, *args)

    def in_validation(folder, dataset):
        if folder.module.step == -update:
            os.kill(os.getpid(), number)
        return validate(folder, dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerModule, "apply_gradients", in_update)
        patch.setattr(callbacks.RunFolder, "_validate", in_validation)
        train.train(settings(**given), folder, ALONE, resume)


def last(folder, name="last"):
    return folder / "checkpoints" / f"{name}.ckpt"


def assert_same(folder, expected):
    """Weights, averages and optimizers bit for bit, and the counters."""
    found, known = checkpoint.load(last(folder)), checkpoint.load(last(expected))
    assert found["updates"] == known["updates"]
    for name, value in known["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    for a, b in zip(found["optimizer_states"], known["optimizer_states"], strict=True):
        for index, moments in b["state"].items():
            for key, value in moments.items():
                assert torch.equal(a["state"][index][key], value), (index, key)
    assert found["callbacks"] == known["callbacks"]
    assert rows(folder) == rows(expected)
    images = [sorted(p.name for p in (f / "images").glob("*")) for f in (folder, expected)]
    assert images[0] == images[1]


def rows(folder):
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(("accumulate", "updates"), [(1, [1, 4, 6, -3]), (2, [3])])
def test_a_run_stopped_after_any_update_goes_on_as_if_it_had_not_been(
    tmp_path, accumulate, updates
):
    """Six updates in two epochs, with adversary, EMA, schedule and validation; those below 0 are
    signalled in the validation after an update."""
    given = {"accumulate_grad_batches": accumulate, "images": 9 * accumulate}
    run(tmp_path / "whole", **given)
    for update in updates:
        folder = tmp_path / str(update)
        with pytest.raises(Preempted) as stopped:
            run(folder, after=(signal.SIGTERM, update), workers=update % 2, **given)
        assert stopped.value.number == signal.SIGTERM and str(folder) in stopped.value.saved
        assert checkpoint.load(last(folder))["updates"] == abs(update)
        run(folder, last(folder), **given)
        assert_same(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    ("given", "updates"),
    [
        ({"max_epochs": 2, "images": 6, "check_val_every_n_epoch": 2}, [3, -4]),
        ({"max_epochs": -1, "images": 6, "max_steps": 5}, [-2, 4, 5]),
    ],
)
def test_a_run_may_be_stopped_again_and_again(tmp_path, given, updates):
    run(tmp_path / "whole", **given)
    folder, resume = tmp_path / "stopped", None
    for update in updates:
        with pytest.raises(Preempted):
            run(folder, resume, after=(signal.SIGINT, update), **given)
        resume = last(folder)
        assert checkpoint.load(resume)["updates"] == abs(update)
    run(folder, resume, **given)
    assert_same(folder, tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, max_epochs=3, lightning={"checkpoint_keep_all": True})
    return folder


def test_all_checkpoints_are_kept_if_asked_for_and_can_be_gone_on_from(whole, tmp_path):
    names = {p.stem for p in (whole / "checkpoints").iterdir()}
    assert names == {"last", "best", "epoch_000001", "epoch_000002", "epoch_000003"}
    run(tmp_path, last(whole, "epoch_000001"), max_epochs=3)
    found = checkpoint.load(last(tmp_path))["state_dict"]
    for key, value in checkpoint.load(last(whole))["state_dict"].items():
        assert torch.equal(found[key], value), key


def test_a_signal_before_the_first_update_is_heeded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        TokenizerModule, "on_fit_start", lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Preempted) as stopped:
        run(tmp_path)
    assert stopped.value.saved == "no update had been made" and not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_asks_for_a_checkpoint_and_training_goes_on(tmp_path, capsys):
    run(tmp_path, max_epochs=1, images=9, after=(signal.SIGUSR1, 2))
    assert "checkpoint after 2 updates" in capsys.readouterr().out
    assert checkpoint.load(last(tmp_path))["updates"] == 3
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_the_best_checkpoint_is_the_best(tmp_path, monkeypatch):
    """Also after a kill between it and the last one, before which the epoch is done again."""
    values, checkpoint_of = iter([10.0, 30.0, 30.0, 20.0]), callbacks.RunFolder.checkpoint

    def killed(self, name):
        if name == "last" and self.progress["epochs"] == 2:
            raise KeyboardInterrupt
        return checkpoint_of(self, name)

    monkeypatch.setattr(
        callbacks, "evaluate", lambda *_, **__: Evaluation({"psnr": next(values)}, 1.0)
    )
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(callbacks.RunFolder, "checkpoint", killed)
        run(tmp_path, max_epochs=3)
    updates = [checkpoint.load(last(tmp_path, name))["updates"] for name in ("last", "best")]
    assert updates == [2, 4]
    run(tmp_path, last(tmp_path), max_epochs=3)
    updates = [checkpoint.load(last(tmp_path, name))["updates"] for name in ("last", "best")]
    assert updates == [6, 4]


def test_steps_are_those_of_the_autoencoder(whole):
    file = checkpoint.load(last(whole))
    steps = [{int(s["step"]) for s in o["state"].values()} for o in file["optimizer_states"]]
    assert steps == [{6}, {3}]  # the discriminator takes part from step 3 on
    assert file["updates"] == file["global_step"] == 6
    lr = [float(value) for step, name, value in rows(whole)[1:] if name == "train/lr"]
    assert lr == [0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3]


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    run(tmp_path, max_epochs=1)
    before = last(tmp_path).read_bytes()
    given = settings(max_epochs=2, loss={"pixelloss_weight": 1e38})
    with pytest.raises(UserError, match="finite"):
        train.train(given, tmp_path, ALONE, last(tmp_path))
    assert last(tmp_path).read_bytes() == before


def test_without_an_average_the_weights_themselves_are_loaded(tmp_path):
    run(tmp_path, max_epochs=1, use_ema=False)
    found, state = load_tokenizer(last(tmp_path)), checkpoint.load(last(tmp_path))["state_dict"]
    assert all(torch.equal(v, state[f"tokenizer.{k}"]) for k, v in found.state_dict().items())
    assert not any(name.startswith("ema.") for name in state)


@pytest.mark.parametrize("released", [False, True])
def test_training_starts_from_a_tokenizer_with_its_discriminator(whole, tmp_path, released):
    path, raw = last(whole), raw_tokenizer(last(whole))
    state = checkpoint.load(path)["state_dict"]
    heads = {k.removeprefix("objective.discriminator."): v for k, v in state.items() if "disc" in k}
    if released:
        path = tmp_path / "tokenizer.ckpt"
        names = {f"loss.discriminator.main.{k.removeprefix('stack.')}": v for k, v in heads.items()}
        weights = to_released(raw, load_tokenizer(last(whole)))
        checkpoint.save(path, {"state_dict": weights | names | {"loss.logvar": torch.zeros(())}})
    module = build_module(settings(ckpt_path=str(path), ema_decay=0.99))
    for key, value in module.objective.discriminator.state_dict().items():
        assert torch.equal(value, heads[key]), key
    for ours, wanted in ((module.tokenizer, raw), (module.ema.model, load_tokenizer(last(whole)))):
        for a, b in zip(ours.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(a, b)
    assert module.ema.updates == WARM  # so that what is loaded is not washed out at once


def test_the_decoder_is_trained_further_on_the_same_tokens(whole, tmp_path):
    given = {"stage2": True, "ckpt_path": str(last(whole)), "grad_clip": 1.0}
    run(tmp_path, **given)
    run(tmp_path, last(tmp_path), max_epochs=3, **given | {"ckpt_path": "gone.ckpt"})
    before, found = load_tokenizer(last(whole)), load_tokenizer(last(tmp_path)).state_dict()
    kept = ("encoder.", "bottleneck.mix_columns", "bottleneck.to_tokens", "token_scale")
    for name, value in before.state_dict().items():
        close = torch.allclose(found[name], value, rtol=1e-5)
        assert close is name.startswith(kept), name


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"scheduler_config": {"warmup": 1}}, r"scheduler_config\..*warmup"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"loss": {"kl_weight": float("inf")}}, "kl_weight"),
        ({"loss": {"disc_factor": 2}}, "disc_factor"),
        ({"stage2": True}, "ckpt_path"),
        ({"lossconfig": {"target": "tokenizer.modules.losses.DummyLoss"}}, r"lossconfig\.target"),
    ],
)
def test_settings_that_cannot_train_are_named(params, key, monkeypatch):
    monkeypatch.setattr(config, "_foreign_allowed", False)
    with pytest.raises(UserError, match=key):
        build_module(settings(**params))
