"""Classifier of images: which class does a stranger see in a generated image?

Shapes: N images, B batch, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import images, seeding


class Classifier(nn.Module):
    """Four strided convolutions, the mean over all positions, one linear layer.

    Any image size of 32 pixels or more works. Images are halved first, so that the answer rests on
    shapes and colours rather than on the finest texture.
    """

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        before = 3
        for after in (width, 2 * width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            before = after
        self.features = nn.Sequential(*layers)
        self.to_classes = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [B, D, h, w]
        return self.to_classes(x.mean(dim=(2, 3)))  # [B, K]


def stack(dataset: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """The images uint8 [N, 3, H, W] and labels [N] of a data set of one image size."""
    images, labels = zip(*dataset, strict=True)
    return torch.stack(images), torch.tensor(labels)


def train(
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    epochs: int = 5,
    batch_size: int = 32,
    rate: float = 3e-3,
) -> Classifier:
    """A classifier of these images, in evaluation mode.

    Half of the images are mirrored and half are blurred at each draw, because a generated image is
    softer than a real one and should not be judged by that.

    Args:
        pixels: uint8 [N, 3, H, W], two images or more.
        labels: [N] in 0 … classes − 1.
        seed: of the weights, the order, the mirroring and the blur.
        epochs, batch_size: passes over the images; an incomplete last batch is left out.
        rate: highest learning rate of a one-cycle schedule.
    """
    batch_size = min(batch_size, len(pixels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeding.stream(seed, "classifier").integers(2**63)))
        model = Classifier(classes)
    steps = len(pixels) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        randomness = seeding.stream(seed, "classifier", epoch)
        order = torch.from_numpy(randomness.permutation(len(pixels)))
        for chosen in order.split(batch_size)[:steps]:
            mirrored, blurred = torch.from_numpy(randomness.random((2, len(chosen), 1, 1, 1)) < 0.5)
            x = images.to_float(pixels[chosen])
            x = torch.where(mirrored, x.flip(3), x)
            x = torch.where(blurred, _blur(x), x)
            loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def agreement(model: Classifier, pixels: Tensor, labels: Tensor) -> tuple[list[int], list[int]]:
    """Images uint8 [N, 3, H, W] of each class [K], those named correctly and all."""
    classes = model.to_classes.out_features
    named = torch.cat([model(images.to_float(x)).argmax(1) for x in pixels.split(256)])
    right, count = (torch.bincount(x, minlength=classes) for x in (labels[named == labels], labels))
    return right.tolist(), count.tolist()


def far_crops(strip: Tensor, size: int) -> Tensor:
    """Side by side from the right end of a strip [3, H, W], as many as its last quarter holds and
    at least one: [crops, 3, H, size].
    """
    width = strip.shape[2]
    count = max(1, width // 4 // size)
    return strip[:, :, width - count * size :].unfold(2, size, size).permute(2, 0, 1, 3)


def _blur(x: Tensor) -> Tensor:
    """The mean of 3 × 3 pixels."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
