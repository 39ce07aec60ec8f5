"""Generator checkpoints: of our training, or released; read once, by the first process."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from common import checkpoint, config, distributed
from common.errors import UserError
from generator.model import SIZES, Generator, GeneratorConfig

T = TypeVar("T")
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


def is_released(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is under the released names."""
    return "fake_latent" in state


def from_released(state: Mapping[str, Tensor], model: Generator) -> dict[str, Tensor]:
    """A state dict under the released names, under those of `model`; unknown ones as they are."""
    ours = {released_name(name): name for name in model.state_dict()}
    return {ours.get(name, name): tensor for name, tensor in state.items()}


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names."""
    return {released_name(name): tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in evaluation mode and what its checkpoint says of it.

    Args:
        model: with EMA weights, if asked for.
        class_names: of the training data; numbers where the checkpoint has no names.
        tokenizer: fingerprint of the tokenizer it was trained with, or None.
        token_scale: of the tokens it was trained on, or None.
        columns: of the images it was trained on, or None.
    """

    model: Generator
    class_names: list[str]
    tokenizer: str | None = None
    token_scale: float | None = None
    columns: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A short name of the weights; to be asked for before they are packed for sampling."""
        return checkpoint.weights_hash(self.model.state_dict())

    def scale(self, asked: float | None) -> float | None:
        """Of the tokens: `--vae_norm`, if it is asked for, or that of training."""
        trained = self.token_scale
        if None not in (asked, trained) and not math.isclose(asked, trained, rel_tol=1e-3):
            raise UserError(f"--vae_norm: found {asked}, but the checkpoint has {trained:.6g}")
        return trained if asked is None else asked

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse a tokenizer of another fingerprint; a checkpoint that names none takes any."""
        if self.tokenizer not in (None, fingerprint):
            raise UserError(
                f"generator: was trained on tokens of tokenizer {self.tokenizer}, found "
                f"{fingerprint}"
            )


def load_generator(
    path: str | Path,
    config: GeneratorConfig | Mapping[str, Any] | None = None,
    ema: bool = True,
    device: torch.device | str = "cpu",
) -> LoadedGenerator:
    """The generator of a checkpoint; all processes call this together, the first one reads it.

    Args:
        path: a checkpoint of `scripts/train_generator.py`, or a released one.
        config: its sizes, or some of them; a released checkpoint needs them, and where ours
            carries its own they must not contradict it.
        ema: take the EMA weights rather than the raw ones.
        device: of the model.

    Raises:
        UserError: no such file, not a generator, or sizes that do not fit it.
    """
    key = "model_ema" if ema else "model"
    file = read_once(path, device, {"optimizer", "model", "model_ema"} - {key})
    state = file.get(key)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: has no {key}; expected a checkpoint of the generator")
    sizes = sizes_of(file, state, asdict(config) if isinstance(config, GeneratorConfig) else config)
    model = Generator(sizes)
    weights = from_released(state, model) if is_released(state) else state
    checkpoint.load_weights(model, weights, path)
    names = file.get("class_names") or [str(i) for i in range(sizes.classes)]
    if len(names) != sizes.classes:
        raise UserError(f"{path}: found {len(names)} class names, expected {sizes.classes}")
    model = model.to(device).eval().requires_grad_(False)
    columns = file.get("data", {}).get("columns")
    return LoadedGenerator(model, names, file.get("tokenizer"), file.get("token_scale"), columns)


def sizes_of(
    file: Mapping[str, Any], state: Mapping[str, Tensor], given: Mapping[str, Any] | None
) -> GeneratorConfig:
    """The sizes of a checkpoint: its own, or `given` ones, with which released weights go."""
    known = dict(file.get("generator", {}))
    if not known and "class_emb.weight" in state and "z_proj.weight" in state:
        known["classes"] = len(state["class_emb.weight"])
        known["channels"] = state["z_proj.weight"].shape[1]
    return complete(given or {}, known)


def complete(given: Mapping[str, Any], known: Mapping[str, Any]) -> GeneratorConfig:
    """The sizes that are `given`, which must agree with those `known` from elsewhere."""
    for name, value in given.items():
        if known.get(name, value) != value:
            flag = GeneratorConfig.__dataclass_fields__[name].metadata["flag"] or name
            raise UserError(f"--{flag}: found {value}, expected {known[name]}")
    values = {**given, **known}
    if not {"width", "depth", "heads"} <= values.keys():
        raise UserError(f"--model: not given, expected one of {', '.join(SIZES)}, or all sizes")
    return config.structured(GeneratorConfig, values, "--")


def on_first(build: Callable[[], T]) -> T:
    """What `build` gives on the first process, on all of them; so with its mistakes."""
    found: Any = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found = build()
        except UserError as error:
            found = error
    found = distributed.broadcast_object(found)
    if isinstance(found, UserError):
        raise found
    return found


def read_once(
    path: str | Path, device: torch.device | str, unused: Collection[str] = ()
) -> dict[str, Any]:
    """What a checkpoint holds, but for `unused` keys, on every process; the first one reads it."""
    file: dict[str, Any] = {}

    def read() -> dict[str, Any]:
        file.update({k: v for k, v in checkpoint.load(path).items() if k not in unused})
        return tree_map_only(Tensor, lambda x: x.to("meta"), file)

    shapes = on_first(read)
    if not dist.is_initialized():
        return file
    file = file or tree_map_only(Tensor, lambda x: torch.empty_like(x, device="cpu"), shapes)
    for tensor in tree_leaves(file):
        if isinstance(tensor, Tensor):
            sent = tensor.to(device)
            dist.broadcast(sent, 0)
            tensor.copy_(sent)
    return file
