"""Objective of the tokenizer (paper, tokenizer section): faithful, compact, real-looking.

Shapes: B batch, H W pixels, h L the semantic map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import distributed
from common.config import Natural, Positive, limits
from common.pretrained.lpips import LPIPS
from common.seeding import BatchDraws
from tokenizer.losses.alignment import Alignment
from tokenizer.losses.augment import DRAWS, augment
from tokenizer.losses.dino import CROP_DRAWS, DinoDiscriminator
from tokenizer.losses.patchgan import PatchGAN
from tokenizer.posterior import Posterior

Weight = Annotated[float, limits(min=0)]


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: nn.Parameter) -> Tensor:
    """How much the adversarial term counts: ‖∇rec‖ / (‖∇adv‖ + 1e-4), at most 1e4.

    Both gradients are those of the decoder's last convolution, averaged over all processes, so
    that the factor does not depend on how the batch is split.
    """
    norms = [
        distributed.all_reduce_mean(torch.autograd.grad(term, weight, retain_graph=True)[0]).norm()
        for term in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of a batch of images, and what it should make."""

    target: Tensor  # [B, 3, H, W] in [-1, 1]
    images: Tensor  # [B, 3, H, W], about [-1, 1]
    semantics: Tensor | None  # the semantic map [B, c, h, L] where it is wanted
    posterior: Posterior  # of the images' tokens
    draws: BatchDraws  # of all that is random in the objective


@dataclass(frozen=True)
class Term:
    """A term of the autoencoder's loss: `loss`, a scalar, counts `weight` times from the update
    `start` on. The reconstruction's terms are summed over pixels and channels."""

    name: str
    weight: float
    loss: Callable[[Reconstruction], Tensor]
    start: int = 0
    reconstruction: bool = False
    adaptive: bool = False  # `adaptive_weight` is a further factor


class Objective(nn.Module):
    """The terms of stage one, and the discriminator, which is trained along with the autoencoder.

    A term of weight 0 is left out, and its network, from `weights_dir`, is not loaded. Steps are
    updates of the autoencoder. `disc_width` and `disc_num_layers` size the PatchGAN.
    """

    def __init__(
        self,
        pixelloss_weight: Weight = 1.0,
        perceptual_weight: Weight = 1.0,
        kl_weight: Weight = 0.01,
        disc_type: Literal["dino", "patchgan", "none"] = "dino",
        disc_weight: Weight = 0.5,
        disc_start: Natural = 5001,
        disc_width: Positive = 64,
        disc_num_layers: Positive = 3,
        semantic_loss_w: Weight = 5.0,
        semantic_iter_start: Natural = 20001,
        weights_dir: str | None = None,
        # in released files, with the one meaning that they have there
        disc_loss: Literal["hinge"] = "hinge",
        disc_factor: Annotated[float, limits(choices=(1.0,))] = 1.0,
        disc_in_channels: Literal[3] = 3,
        disc_conditional: Literal[False] = False,
        use_actnorm: Literal[False] = False,
        logvar_init: Annotated[float, limits(choices=(0.0,))] = 0.0,
    ) -> None:
        super().__init__()
        self.perceptual = LPIPS(weights_dir) if perceptual_weight else None
        self.alignment = Alignment(weights_dir) if semantic_loss_w else None
        self.discriminator: DinoDiscriminator | PatchGAN | None = None
        if disc_type == "none" or not disc_weight:
            disc_weight = 0.0
        elif disc_type == "dino":
            self.discriminator = DinoDiscriminator(weights_dir)
        else:
            self.discriminator = PatchGAN(disc_width, disc_num_layers)

        def pixel(fake: Reconstruction) -> Tensor:
            return (fake.images.float() - fake.target).abs().sum() / len(fake.target)

        def lpips(fake: Reconstruction) -> Tensor:  # one number an image counts for all its pixels
            return fake.target[0].numel() * self.perceptual(fake.images, fake.target).mean()

        def semantic(fake: Reconstruction) -> Tensor:
            return self.alignment.loss(fake.semantics, fake.target)

        terms = [  # added up in this order
            Term("pixel", pixelloss_weight, pixel, reconstruction=True),
            Term("lpips", perceptual_weight, lpips, reconstruction=True),
            Term("kl", kl_weight, lambda fake: fake.posterior.kl().mean()),
            Term("semantic", semantic_loss_w, semantic, semantic_iter_start),
            Term("adversarial", disc_weight, self._adversarial, disc_start, adaptive=True),
        ]
        self.terms = [term for term in terms if term.weight]

    def active(self, step: int) -> list[str]:
        """Names of the terms that count after `step` updates."""
        return [term.name for term in self.terms if step >= term.start]

    def autoencoder_loss(
        self, fake: Reconstruction, last_weight: nn.Parameter, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The autoencoder's loss after `step` updates, and its parts for the logs; the adaptive
        factor looks at `last_weight`, that of the decoder's last convolution."""
        total = rec = torch.zeros((), device=fake.images.device)
        parts: dict[str, Tensor] = {}
        for term in (term for term in self.terms if step >= term.start):
            loss, factor = term.loss(fake), term.weight
            parts[term.name] = loss / fake.target[0].numel() if term.reconstruction else loss
            if term.adaptive:
                parts["d_weight"] = adaptive_weight(rec, loss, last_weight)
                factor = factor * parts["d_weight"]
            total = total + factor * loss
            rec = rec + factor * loss if term.reconstruction else rec
        return total, {k: v.detach() for k, v in {**parts, "rec": rec, "total": total}.items()}

    def discriminator_loss(self, fake: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on real images and on reconstructions, and its parts."""
        real, false = self._logits(fake.target, fake), self._logits(fake.images.detach(), fake)
        loss = hinge_loss(real, false)
        parts = {"disc": loss, "logits_real": real.mean(), "logits_fake": false.mean()}
        return loss, {k: v.detach() for k, v in parts.items()}

    def _adversarial(self, fake: Reconstruction) -> Tensor:
        self.discriminator.requires_grad_(False)  # the gradient reaches the images alone
        loss = -self._logits(fake.images, fake).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def _logits(self, images: Tensor, fake: Reconstruction) -> Tensor:
        """What the discriminator says of images, in float32."""
        if isinstance(self.discriminator, DinoDiscriminator):
            images = augment(images.float(), fake.draws.uniform(len(images), DRAWS))
            return self.discriminator(images, fake.draws.shared(CROP_DRAWS)).float()
        return self.discriminator(images).float()
