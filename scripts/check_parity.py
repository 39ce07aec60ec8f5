"""Compare both models with reference tensors, which the paper's released code computed.

    python scripts/check_parity.py FILE.safetensors ... [--device cuda]

Prints the largest absolute error of every output in a file; exits with 1 if one is too large.
tests/reference/README.md describes the files.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import checkpoint, cli, config, distributed
from common.errors import UserError, run_cli
from common.precision import full_float32
from generator.checkpoints import from_released, released_name, to_released
from generator.guidance import guided
from generator.model import Generator, GeneratorConfig
from generator.objective import Draws, token_losses
from generator.sampling import SampleConfig, numbered, sample
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
    tolerance: float = TOLERANCE

    @property
    def is_small(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


class Parts(dict):
    """What a reference file has, by name; a UserError names what it lacks."""

    def __init__(self, path: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.path}: has no {name}; is this a reference file?")


class Reference:
    """A reference file: `weights` and `tensors` on a device, `config` and `grad_norms`.

    Raises:
        UserError: no such file, or not of this form.
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.path = path
        metadata = Parts(path, checkpoint.load_metadata(path))
        try:
            self.config = Parts(path, json.loads(metadata["config"]))
            self.grad_norms = Parts(path, json.loads(metadata.get("grad_norms", "{}")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: metadata: not a JSON mapping ({error})") from None
        self.weights, self.tensors = Parts(path, {}), Parts(path, {})
        for name, tensor in checkpoint.load(path).items():
            kind = self.weights if name.startswith("weights.") else self.tensors
            kind[name.removeprefix("weights.")] = tensor.to(device)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def deviation(self, name: str, found: Tensor) -> Deviation:
        return Deviation(name, self._distance(found, self[name], name))

    def round_trip(self, name: str, written: Mapping[str, Tensor]) -> Deviation:
        """Of weights that were converted and written back under their names in the file."""
        return largest(name, (self._distance(v, self.weights[k], k) for k, v in written.items()), 0)

    def _distance(self, found: Tensor, expected: Tensor, name: str) -> float:
        if found.shape != expected.shape:
            shapes = f"found {list(expected.shape)}, expected {list(found.shape)}"
            raise UserError(f"{self.path}: {name}: {shapes} from the other tensors")
        return (found - expected).abs().max().item()


def largest(name: str, errors: Iterable[float], tolerance: float) -> Deviation:
    """NaN where one is, which Python's `max` may pass over."""
    return Deviation(name, torch.tensor(list(errors)).max().item(), tolerance)


def deviations(path: str, device: torch.device | str = "cpu") -> Iterator[Deviation]:
    """Everything that the reference file at `path` lets one compare, of either model.

    Raises:
        UserError: the file is missing or of another form.
    """
    reference = Reference(path, device)
    if "ddconfig" in reference.config:
        return tokenizer_deviations(reference, device)
    return generator_deviations(reference, device)


@torch.no_grad()
def tokenizer_deviations(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = config.structured(TokenizerConfig, reference.config, f"{reference.path}: config")
    model = Tokenizer(**vars(sizes)).to(device).eval()

    names = {k: checkpoints.ema_name(k) for k in model.state_dict() if k != "token_scale"}
    model.load_state_dict(checkpoints.from_released(reference.weights, model, ema=True))
    ema = {name: model.state_dict()[k].clone() for k, name in names.items()}
    yield reference.round_trip("weights_ema", ema)

    names = {k: checkpoints.released_name(k) for k in names}
    model.load_state_dict(checkpoints.from_released(reference.weights, model, ema=False))
    raw = {name: model.state_dict()[k] for k, name in names.items()}
    yield reference.round_trip("weights", raw)
    if all(map(torch.equal, raw.values(), ema.values())):
        raise UserError(f"{reference.path}: the EMA weights have the raw values, expected others")

    posterior = model.encode(reference["image"])
    yield reference.deviation("posterior_mean", posterior.mean)
    yield reference.deviation("kl", posterior.kl())
    if model.semantic_decoder is None:
        images = model.decode(reference["posterior_mean"])
    else:
        images, semantic = model.decode_with_semantics(reference["posterior_mean"])
        yield reference.deviation("semantic", semantic)
    yield reference.deviation("reconstruction", images)
    yield reference.deviation("random_decoded", model.decode(reference["random_tokens"]))


def generator_deviations(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = {ours: reference.config[name] for name, ours in GENERATOR_SIZES.items()}
    model = Generator(GeneratorConfig(**sizes)).to(device).eval()
    model.load_state_dict(from_released(reference.weights, model))
    written = to_released(model.state_dict())
    yield reference.round_trip("weights", written)

    with torch.no_grad():
        for name, value in generator_outputs(reference, model):
            yield reference.deviation(name, value)

    draws = Draws(
        int(reference["train_shift"]),
        reference["train_drop"],
        reference["train_flow_t"][:, 0],
        reference["train_flow_noise"],
    )
    losses = token_losses(model, reference["tokens"], reference["labels"], draws)
    loss = losses.mean(dim=(0, 1)).mean()
    yield reference.deviation("train_loss", loss.detach())
    loss.backward()
    norms = {k: parameter.grad.norm().item() for k, parameter in model.named_parameters()}
    expected = {k: reference.grad_norms[released_name(k)] for k in norms}
    errors = (abs(norms[k] - expected[k]) / max(expected[k], GRADIENT_FLOOR) for k in norms)
    yield largest("grad_norms", errors, GRADIENT_TOLERANCE)


def generator_outputs(reference: Reference, model: Generator) -> Iterator[tuple[str, Tensor]]:
    """Name and value of the outputs that need no gradient."""
    tokens, labels = reference["tokens"], reference["labels"]
    classes = {"hidden": labels, "hidden_uncond": model.condition.null(labels)}
    for name, drawn in classes.items():
        yield name, model.hidden(tokens[:, :-1], model.read_condition(drawn))

    x, t, condition = (reference[f"head_{name}"] for name in "xtc")
    yield "head_velocity", model.head(x, t, condition)
    # The first rows of x serve both branches: the first half of the times and conditions is the
    # conditional branch, the second the unconditional one; the result stands in both halves.
    velocity = guided(lambda x, _: model.head(x, t, condition), 3.0)
    yield "head_velocity_cfg3", velocity(x.chunk(2)[0], 0.0).repeat(2, 1)

    steps, prefix = reference.config["num_sampling_steps"], reference.config["prefix"]
    columns = reference.config["token_num"]
    noise = reference["sample_noise"].transpose(0, 1)  # [B, L, C]
    for name, cfg, schedule, given in (
        ("sample_cfg1", 1.0, "linear", 0),
        ("sample_cfg4_linear", 4.0, "linear", 0),
        ("sample_cfg4_constant", 4.0, "constant", 0),
        ("sample_cfg4_linear_prefix", 4.0, "linear", prefix),
    ):
        config = SampleConfig(columns, cfg=cfg, cfg_schedule=schedule, steps=steps)
        yield name, sample(model, labels, noise, config, numbered(tokens[:, :given]))


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
