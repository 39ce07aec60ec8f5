"""Generator checkpoints: of our training, or released."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import checkpoint, config
from common.config import setting
from common.distributed import load_on_all
from common.errors import UserError
from generator.config import GeneratorConfig, TrainConfig
from generator.model import Generator
from generator.sampling import COLUMNS

# our names → the released ones
RULES = [
    (r"^condition\.embedding\.", "class_emb."),
    (r"^condition\.unconditional$", "fake_latent"),
    (r"^context_positions$", "encoder_pos_embed_learned"),
    (r"^token_in\.", "z_proj."),
    (r"^norm_in\.", "z_proj_ln."),
    (r"^norm_out\.", "encoder_norm."),
    (r"^layers\.", "encoder_blocks."),
    (r"\.attention\.", ".attn."),
    (r"\.cross_attention\.q\.", ".attn2.qkv."),
    (r"\.cross_attention\.", ".attn2."),
    (r"\.context_norm\.", ".cross_cond_norm."),
    (r"^head\.token_in\.", "diffloss.net.input_proj."),
    (r"^head\.condition_in\.", "diffloss.net.cond_embed."),
    (r"^head\.time\.fc1\.", "diffloss.net.time_embed.mlp.0."),
    (r"^head\.time\.fc2\.", "diffloss.net.time_embed.mlp.2."),
    (r"^head\.modulation_out\.", "diffloss.net.final_layer.adaLN_modulation.1."),
    (r"^head\.token_out\.", "diffloss.net.final_layer.linear."),
    (r"^head\.blocks\.(\d+)\.norm\.", r"diffloss.net.res_blocks.\1.in_ln."),
    (r"^head\.blocks\.(\d+)\.fc1\.", r"diffloss.net.res_blocks.\1.mlp.0."),
    (r"^head\.blocks\.(\d+)\.fc2\.", r"diffloss.net.res_blocks.\1.mlp.2."),
    (r"^head\.blocks\.(\d+)\.modulation\.", r"diffloss.net.res_blocks.\1.adaLN_modulation.1."),
]


def released_name(name: str) -> str:
    """The released name of our parameter `name`."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def from_released(state: Mapping[str, Tensor], model: Generator) -> dict[str, Tensor]:
    """A state dict under the released names, under those of `model`; others as they are."""
    ours = {released_name(name): name for name in model.state_dict()}
    return {ours.get(name, name): tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class GeneratorFile:
    """The entries of a checkpoint of our training; a released one has of them its weights alone."""

    model: dict[str, Tensor] | None = None
    model_ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    generator: GeneratorConfig | None = None
    training: TrainConfig | None = None
    data: dict[str, int] | None = None  # images, and columns of each
    class_names: list[str] | None = None
    tokenizer: str | None = None
    token_scale: float | None = setting(None, above=0)
    std: float | None = setting(None, min=0)
    epoch: int = setting(0, min=0)
    epoch_images: int = setting(0, "done of the epoch after these", min=0)
    step: int = setting(0, min=0)
    skipped: int = setting(0, min=0)
    skipped_in_a_row: int = setting(0, min=0)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.model or self.model_ema or {}

    def fill(self, model: Generator, key: str, path: str | Path) -> None:
        """Give a generator the weights `model` or `model_ema`."""
        checkpoint.load_weights(model, from_released(getattr(self, key) or {}, model), path)

    def sizes(self, given: Mapping[str, Any], **known: Any) -> GeneratorConfig:
        """The sizes `given`, which must agree with those of the checkpoint, and where it has none
        with those `known` of the data and of released weights."""
        if self.generator is not None:
            known = asdict(self.generator)
        elif {"class_emb.weight", "z_proj.weight"} <= self.weights.keys():
            classes, tokens = self.weights["class_emb.weight"], self.weights["z_proj.weight"]
            known = {"classes": len(classes), "channels": tokens.shape[1], **known}
        for name, value in given.items():
            if known.get(name, value) != value:
                flag = GeneratorConfig.__dataclass_fields__[name].metadata["flag"] or name
                raise UserError(f"--{flag}: found {value}, expected {known[name]}")
        return config.structured(GeneratorConfig, {**given, **known}, "--")


def read(path: str | Path, device: torch.device | str, *unused: str) -> GeneratorFile:
    """A checkpoint without `unused` entries; all processes call this together, one reads it."""
    names = {field.name for field in fields(GeneratorFile)}.difference(unused)

    def load() -> dict[str, Any]:
        return {k: v for k, v in checkpoint.load(path).items() if k in names}

    return config.structured(GeneratorFile, load_on_all(load, device), str(path))


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in evaluation mode, and what its checkpoint, if it is ours, says of training."""

    model: Generator
    class_names: list[str]
    tokenizer: str | None = None  # its fingerprint
    token_scale: float | None = None
    columns: int = COLUMNS  # of an image

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse a tokenizer other than the one that the checkpoint names, if it does."""
        if self.tokenizer not in (None, fingerprint):
            raise UserError(f"tokenizer: found {fingerprint}, expected {self.tokenizer}")


def load_generator(
    path: str | Path,
    sizes: Mapping[str, Any] | None = None,
    ema: bool = True,
    device: torch.device | str = "cpu",
    token_scale: float | None = None,
) -> LoadedGenerator:
    """The generator of a checkpoint, with its EMA weights or the raw ones; all processes call this
    together. A released one needs the `sizes` of `GeneratorConfig` and the `token_scale`
    (`--vae_norm`), which must be those of ours if given."""
    key, other = ("model_ema", "model") if ema else ("model", "model_ema")
    file = read(path, device, "optimizer", other)
    model = Generator(file.sizes(sizes or {}))
    file.fill(model, key, path)
    names = file.class_names or list(map(str, range(model.config.classes)))
    if len(names) != model.config.classes:
        raise UserError(f"{path}: found {len(names)} class_names, expected {model.config.classes}")
    scale = token_scale or file.token_scale
    if file.token_scale and not math.isclose(scale, file.token_scale, rel_tol=1e-3):
        raise UserError(f"--vae_norm: found {scale}, expected {file.token_scale:.6g} as trained")
    columns = (file.data or {}).get("columns", COLUMNS)
    model = model.to(device).eval().requires_grad_(False)
    return LoadedGenerator(model, names, file.tokenizer, scale, columns)
