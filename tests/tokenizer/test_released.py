from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tokenizer import Tokenizer
from tokenizer.released import ema_name, from_released, released_name, to_released

KEYS = Path(__file__).parents[1] / "reference" / "keys" / "tokenizer.json"
RELEASED = {
    "ddconfig": {
        "double_enc": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": (1, 1, 2, 4, 4),
        "num_res_blocks": 2,
        "attn_resolutions": (16,),
        "len_down_scale": 4,
        "semantic_map": "res",
    },
    "sematicconfig": {
        "z_channels": 512,
        "ch": 768,
        "ch_mult": (1, 1),
        "num_res_blocks": 2,
        "out_ch": 768,
    },
    "embed_dim": 256,
    "post_channels": 4096,
    "std": 2.5,
}


def shapes(state):
    return {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("ema", [True, False])
def test_every_released_weight_has_its_place(ema):
    """Of the full-sized model, without memory for its values."""
    released = json.loads(KEYS.read_text())
    with torch.device("meta"):
        model = Tokenizer(**RELEASED)
        state = {name: torch.empty(shape) for name, shape in released.items()}
        state["loss.discriminator.main.0.weight"] = torch.empty(1)
        assert shapes(from_released(state, model, ema)) == shapes(model.state_dict())
        assert shapes(to_released(model, model)) == released


@pytest.mark.parametrize(
    ("ours", "raw", "ema"),
    [
        (
            "encoder.levels.3.blocks.0.shortcut.weight",
            "encoder.down.3.block.0.nin_shortcut.weight",
            "ema_encoder.down3block0nin_shortcutweight",
        ),
        (
            "decoder.levels.4.attentions.1.proj.bias",
            "decoder.up.4.attn.1.proj_out.bias",
            "ema_decoder.up4attn1proj_outbias",
        ),
        ("to_tokens.weight", "quant_layer.weight", "ema_quant_layer.weight"),
    ],
)
def test_names(ours, raw, ema):
    assert (released_name(ours), ema_name(ours)) == (raw, ema)


def randomised(sizes, seed):
    torch.manual_seed(seed)
    model = Tokenizer(**sizes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def pair(sizes):
    return randomised(sizes, 1), randomised(sizes, 2)


def test_raw_and_ema_weights_come_back(pair, tokenizer):
    raw, average = pair
    state = to_released(raw, average, decay=0.99, updates=7)
    for ema, expected in ((False, raw), (True, average)):
        tokenizer.load_state_dict(from_released(state, tokenizer, ema))
        for name, value in expected.state_dict().items():
            assert torch.equal(tokenizer.state_dict()[name], value), name
    assert state["ema_decoder.decay"].item() == pytest.approx(0.99)
    assert state["ema_decoder.num_updates"].item() == 7


def test_conversion_keeps_the_scale_of_the_tokens(pair, tokenizer):
    """A released file does not hold it."""
    tokenizer.token_scale.fill_(0.05)
    tokenizer.load_state_dict(from_released(to_released(*pair), tokenizer))
    assert tokenizer.token_scale.item() == pytest.approx(0.05)


def test_blocks_that_never_run_are_written_as_identities(pair, sizes):
    """A semantic decoder that does run them gives what ours gives."""
    raw, average = pair
    state = to_released(raw, average)
    sizes["sematicconfig"]["num_res_blocks"] += 1
    longer = Tokenizer(**sizes).eval()
    written = {k: state[released_name(k)] for k in longer.state_dict() if k != "token_scale"}
    longer.load_state_dict({**written, "token_scale": longer.token_scale})
    features = torch.randn(1, 32, 4, 5)
    with torch.no_grad():
        found, expected = longer.semantic_decoder(features), raw.semantic_decoder(features)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("ema", [True, False])
def test_wrong_weights_are_named(pair, tokenizer, ema):
    state = to_released(*pair)
    name = (ema_name if ema else released_name)("decoder.middle.attention.q.weight")

    def refuse(changed, message):
        with pytest.raises(UserError, match=message):
            from_released(changed, tokenizer, ema)

    refuse({k: v for k, v in state.items() if k != name}, f"1 weights missing.* {name}$")
    refuse({**state, name: torch.zeros(3, 1)}, rf"{name} has shape \[3, 1\].*\[32, 32, 1, 1\]")
    refuse({**state, "decoder.up.9.x": torch.zeros(1)}, r"without a place.* decoder\.up\.9\.x$")
