"""What the tokenizer is trained for (paper, tokenizer section): faithful, compact, real-looking.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import distributed
from common.errors import UserError
from tokenizer.discriminators import PatchGAN
from tokenizer.posterior import Posterior


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: nn.Parameter) -> Tensor:
    """How much the adversarial term counts: ‖∇rec‖ / (‖∇adv‖ + 1e-4), at most 1e4.

    Both gradients are those of the decoder's last convolution, averaged over all processes, so
    that the factor does not depend on how the batch is split.
    """
    norms = [
        distributed.mean(torch.autograd.grad(term, weight, retain_graph=True)[0]).norm()
        for term in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and its parts, detached, for the logs."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """The terms of stage one, each with its weight and the update it starts from.

    Steps are counted in updates of the autoencoder. The discriminator is trainable and belongs to
    the objective; the autoencoder is handed in.

    Args:
        pixel_weight: of the absolute error, summed over pixels and channels, divided by B.
        kl_weight: of the posterior's KL divergence, averaged over B.
        perceptual_weight: of LPIPS, broadcast to every pixel.
        disc_type: `patchgan`, or `none` to train without an adversary.
        disc_loss: `hinge` or `vanilla`.
        disc_weight: of the adversarial term, before the adaptive factor.
        disc_start: first step with the adversarial term.
        disc_width, disc_num_layers: size of the PatchGAN.
        semantic_loss_w: of the alignment with a frozen network's features.
    """

    def __init__(
        self,
        pixel_weight: float = 1.0,
        kl_weight: float = 0.01,
        perceptual_weight: float = 0.0,
        disc_type: Literal["patchgan", "none"] = "patchgan",
        disc_loss: Literal["hinge", "vanilla"] = "hinge",
        disc_weight: float = 0.5,
        disc_start: int = 5001,
        disc_width: int = 64,
        disc_num_layers: int = 3,
        semantic_loss_w: float = 0.0,
    ) -> None:
        super().__init__()
        for key, value in {
            "perceptual_weight": perceptual_weight,
            "semantic_loss_w": semantic_loss_w,
        }.items():
            if value:
                raise UserError(
                    f"lossconfig.params.{key}: found {value}, expected 0: this term needs a "
                    "pretrained network, which the objective does not load yet"
                )
        losses = {"hinge": hinge_loss, "vanilla": vanilla_loss}
        if disc_loss not in losses:
            raise UserError(
                f"lossconfig.params.disc_loss: found {disc_loss!r}, "
                f"expected one of {', '.join(losses)}"
            )
        if disc_type not in ("patchgan", "none"):
            raise UserError(
                f"lossconfig.params.disc_type: found {disc_type!r}, expected one of patchgan, none"
            )
        self.pixel_weight = pixel_weight
        self.kl_weight = kl_weight
        self.disc_weight = disc_weight
        self.disc_start = disc_start
        self.disc_loss = losses[disc_loss]
        self.discriminator = (
            PatchGAN(disc_width, disc_num_layers) if disc_type == "patchgan" else None
        )

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.discriminator is not None and step >= self.disc_start

    def autoencoder_loss(
        self,
        images: Tensor,
        reconstructions: Tensor,
        posterior: Posterior,
        last_weight: nn.Parameter,
        step: int,
    ) -> Loss:
        """The autoencoder's loss.

        Args:
            images, reconstructions: [B, 3, H, W] in [-1, 1].
            posterior: of the images.
            last_weight: of the decoder's last convolution, for the adaptive factor.
            step: updates of the autoencoder so far.
        """
        reconstruction = (
            self.pixel_weight * F.l1_loss(reconstructions, images, reduction="sum") / len(images)
        )
        kl = posterior.kl().mean()
        total = reconstruction + self.kl_weight * kl
        terms = {"rec": reconstruction, "kl": kl}
        if self.adversarial(step):
            adversarial = -self._judge(reconstructions).mean()
            weight = adaptive_weight(reconstruction, adversarial, last_weight)
            total = total + self.disc_weight * weight * adversarial
            terms |= {"adversarial": adversarial, "d_weight": weight}
        return Loss(total, {k: v.detach() for k, v in {"total": total, **terms}.items()})

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> Loss:
        """The discriminator's loss on real images and on reconstructions, both [B, 3, H, W]."""
        real, fake = self.discriminator(images), self.discriminator(reconstructions.detach())
        loss = self.disc_loss(real, fake)
        terms = {"disc": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return Loss(loss, {k: v.detach() for k, v in terms.items()})

    def _judge(self, images: Tensor) -> Tensor:
        """Logits whose gradient reaches the images alone."""
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(images)
        self.discriminator.requires_grad_(True)
        return logits
