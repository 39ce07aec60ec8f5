"""Classifier of images: which class does a stranger see in a generated image?

Shapes: N images, H W pixels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import images, seeding

EPOCHS, BATCH, RATE, WIDTH = 4, 32, 3e-3, 24


def untrained(classes: int) -> nn.Sequential:
    """Four strided convolutions, the mean over all positions, one linear layer. Images, 32 pixels
    or more, are halved first: the answer rests on shapes and colours, not on the finest texture."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    before = 3
    for after in (WIDTH, 2 * WIDTH, 2 * WIDTH, 4 * WIDTH):
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def train(pixels: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Module:
    """A classifier of images uint8 [N, 3, H, W] and labels [N], in evaluation mode. Half of the
    images are mirrored at each draw and half are blurred: generated ones are softer, and should not
    be judged by that."""
    size = min(BATCH, len(pixels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeding.stream(seed, "classifier").integers(2**63)))
        model = untrained(classes)
    steps = len(pixels) // size  # an incomplete last batch is left out
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        randomness = seeding.stream(seed, "classifier", epoch)
        order = torch.from_numpy(randomness.permutation(len(pixels)))
        for chosen in order.split(size)[:steps]:
            mirrored, blurred = torch.from_numpy(randomness.random((2, len(chosen), 1, 1, 1)) < 0.5)
            x = images.to_float(pixels[chosen])
            x = torch.where(mirrored, x.flip(3), x)
            softer = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            x = torch.where(blurred, softer, x)
            loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
