"""Compare both models with reference tensors, which the paper's released code computed.

    python scripts/check_parity.py FILE.safetensors ... [--device cuda]

Prints the largest absolute error of every output in a file; exits with 1 if one is too large.
tests/reference/README.md describes the files.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import checkpoint, cli, config, distributed
from common.errors import UserError, run_cli
from common.precision import full_float32
from generator.checkpoints import from_released, released_name
from generator.config import GeneratorConfig
from generator.model import Generator
from generator.objective import Draws, token_losses
from generator.sampling import SampleConfig, numbered, sample_columns
from generator.solvers import guided
from tokenizer import checkpoints
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # relative
# A key bias adds one value to all scores of a query, which a softmax does not see: in exact
# arithmetic the gradient of cross-attention's key biases is zero, and its norm in a file is
# rounding noise of 1e-9. Norms below this floor are compared as if they were the floor.
GRADIENT_FLOOR = 1e-4

# name in the files → field of GeneratorConfig
GENERATOR_SIZES = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "token_channels": "channels",
    "class_num": "classes",
    "buffer_size": "context_tokens",
    "window": "window",
    "diffloss_w": "head_width",
    "diffloss_d": "head_depth",
    "mlp_ratio": "mlp_ratio",
}


class Deviation(NamedTuple):
    """How far a recomputed value lies from the reference, and how far it may."""

    name: str
    error: float
    tolerance: float

    @property
    def is_small(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


class Reference(dict):
    """The tensors of a reference file by name, its `weights` by released name, `config` and
    `grad_norms`; what it lacks is a KeyError."""

    def __init__(self, path: str, device: torch.device | str) -> None:
        super().__init__({k: v.to(device) for k, v in checkpoint.load(path).items()})
        metadata = checkpoint.load_metadata(path)
        self.weights = {k[8:]: v for k, v in self.items() if k.startswith("weights.")}
        self.config = json.loads(metadata["config"])
        self.grad_norms = json.loads(metadata.get("grad_norms", "{}"))

    def deviation(self, name: str, found: Tensor) -> Deviation:
        return Deviation(name, self._distance(name, found), TOLERANCE)

    def deviation_of_weights(self, name: str, found: Mapping[str, Tensor]) -> Deviation:
        """Of weights that were converted, and are written back by their released names."""
        errors = [self._distance(f"weights.{k}", tensor) for k, tensor in found.items()]
        return Deviation(name, np.max(errors).item(), 0)

    def _distance(self, name: str, found: Tensor) -> float:
        if found.shape != self[name].shape:
            raise ValueError(f"{name}: found {[*self[name].shape]}, expected {[*found.shape]}")
        return (found - self[name]).abs().max().item()


def deviations(path: str, device: torch.device | str = "cpu") -> Iterator[Deviation]:
    """Everything that the reference file at `path` lets one compare, of either model; a UserError
    where it is of another form."""
    try:
        reference = Reference(path, device)
        compare = compare_tokenizer if "ddconfig" in reference.config else compare_generator
        yield from compare(reference, device)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; is this a reference file?") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


@torch.no_grad()
def compare_tokenizer(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = config.structured(TokenizerConfig, reference.config, "config")
    model = Tokenizer(**vars(sizes)).to(device).eval()
    written = []
    for ema, rename in ((True, checkpoints.ema_name), (False, checkpoints.released_name)):
        model.load_state_dict(checkpoints.from_released(reference.weights, model, ema))
        state = {k: v.clone() for k, v in model.state_dict().items() if k != "token_scale"}
        written.append(state)
        renamed = {rename(k): v for k, v in state.items()}
        yield reference.deviation_of_weights("weights_ema" if ema else "weights", renamed)
    if all(map(torch.equal, *(weights.values() for weights in written))):
        raise UserError("the EMA weights have the raw values, expected others")

    posterior, tokens = model.encode(reference["image"]), reference["posterior_mean"]
    yield reference.deviation("posterior_mean", posterior.mean)
    yield reference.deviation("kl", posterior.kl())
    if model.semantic_decoder is not None:
        yield reference.deviation("semantic", model.decode_with_semantics(tokens)[1])
    yield reference.deviation("reconstruction", model.decode(tokens))
    yield reference.deviation("random_decoded", model.decode(reference["random_tokens"]))


def compare_generator(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = {ours: reference.config[name] for name, ours in GENERATOR_SIZES.items()}
    model = Generator(GeneratorConfig(**sizes)).to(device).eval()
    model.load_state_dict(from_released(reference.weights, model))
    ours = {released_name(name): tensor for name, tensor in model.state_dict().items()}
    yield reference.deviation_of_weights("weights", ours)
    with torch.no_grad():
        for name, found in generator_outputs(reference, model):
            yield reference.deviation(name, found)

    shift, drop, t, noise = (
        reference[f"train_{k}"] for k in ("shift", "drop", "flow_t", "flow_noise")
    )
    draws = Draws(int(shift), drop, t[:, 0], noise)
    losses = token_losses(model, reference["tokens"], reference["labels"], draws)
    loss = losses.mean(dim=(0, 1)).mean()
    yield reference.deviation("train_loss", loss.detach())
    loss.backward()
    errors = []
    for name, parameter in model.named_parameters():
        expected = reference.grad_norms[released_name(name)]
        error = abs(parameter.grad.norm().item() - expected)
        errors.append(error / max(expected, GRADIENT_FLOOR))
    yield Deviation("grad_norms", np.max(errors).item(), GRADIENT_TOLERANCE)


def generator_outputs(reference: Reference, model: Generator) -> Iterator[tuple[str, Tensor]]:
    """Name and value of what needs no gradient."""
    tokens, labels = reference["tokens"], reference["labels"]
    for name, drawn in (("hidden", labels), ("hidden_uncond", model.condition.null(labels))):
        yield name, model.hidden(tokens[:, :-1], model.read_condition(drawn))

    x, t, condition = (reference[f"head_{name}"] for name in "xtc")
    yield "head_velocity", model.head(x, t, condition)
    # The first rows of x serve both branches: the first half of the times and conditions is the
    # conditional branch, the second the unconditional one; the result stands in both halves.
    velocity = guided(lambda x, _: model.head(x, t, condition), 3.0)
    yield "head_velocity_cfg3", velocity(x.chunk(2)[0], 0.0).repeat(2, 1)

    columns, steps = reference.config["token_num"], reference.config["num_sampling_steps"]
    noise = reference["sample_noise"].transpose(0, 1)  # [B, L, C]
    for name, cfg, schedule, given in (
        ("sample_cfg1", 1.0, "linear", 0),
        ("sample_cfg4_linear", 4.0, "linear", 0),
        ("sample_cfg4_constant", 4.0, "constant", 0),
        ("sample_cfg4_linear_prefix", 4.0, "linear", reference.config["prefix"]),
    ):
        config = SampleConfig(columns, cfg=cfg, cfg_schedule=schedule, steps=steps)
        prefix = numbered(tokens[:, :given])
        found = sample_columns(model, labels, noise.unbind(1), config, prefix)
        yield name, torch.stack(list(found), dim=1)


def main() -> None:
    parser = cli.new_parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="reference files (safetensors)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    flags = cli.parse(parser)

    agree = True
    with distributed.launch(flags.device) as process, full_float32():
        for path in flags.files:
            print(path)
            for found in deviations(path, process.device):
                agree &= found.is_small
                note = "" if found.is_small else f"  (above {found.tolerance:g})"
                print(f"  {found.name:26}{found.error:.2e}{note}")
    if not agree:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
