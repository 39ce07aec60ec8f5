"""Nine landscapes, painted back to front: the images behind `common.panoramas.dataset`.

A scene turns a `View` into an image [3, H, W]. Farther layers are hazier; within a layer, `near`
runs from 0 (far) to 1, and `down` is the distance below the layer's upper edge.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.panoramas.canvas import View, clouds, mix, paint, panes, ramp, smooth, stars, sun, wisps


def alps(view: View) -> np.ndarray:
    """Snow-capped ranges, lit from one side, above a wooded foreground."""
    zenith, horizon, rock, dark, snow, blue, forest, meadow = view.colours(
        "3a6ea8  f7d9b5  8a7a78 4a4a62 fff1de 9fb2d8 24453f 5b7a4a",
        "2f74c0  d5e9f5  84868f 4d566e ffffff a9c3e6 1f4a3c 6d9a4e",
        "4a4f92  f5a37f  8f6a72 453f63 ffd9c4 8f8fc4 252f4a 4f5a56",
    )
    image = view.sky(zenith, horizon, 0.45)
    wisps(image, view)
    facets = view.texture("facets", 7, 5, 2) - 0.5
    lift = 0.16 * (view.wave("lift", 0.25) - 0.5)
    for rank in range(6):
        near = rank // 2 / 2
        peaks = view.scatter(f"peak {rank}", 0.45 + 0.4 * near)
        tops = 0.42 - 0.18 * near + peaks.draw("top", 0.1, 0.34) * (1 + 0.5 * near)
        lines = tops - peaks.draw("slope", 0.75, 1.3) * np.abs(peaks.offset)
        peak, crag = peaks.pick(lines), 0.06 * (view.wave(f"crag {rank}", 9, 2) - 0.5)
        down = lift + np.choose(lines.argmax(0), tops) - view.y
        lee = peak.offset + facets * (0.1 + 0.5 * down) + peak.draw("turn", -0.3, 0.3) * down
        white = view.edge(peak.draw("snow", 0.08, 0.26) + 0.3 * facets - down + crag)
        lee = view.edge(lee)
        face = mix(mix(rock, dark, lee), mix(snow, blue, lee), white)
        air = 0.6 - 0.5 * near
        mist = air + 0.75 * (1 - air) * smooth(ramp(0.1, 0.5, down))
        paint(image, mix(face, horizon, mist), view.below(lines.max(0) + lift + crag))
    for near in (0, 1):
        ground = 0.17 - 0.1 * near + 0.16 * view.wave(f"hill {near}", 1 + near, 2)
        trees = view.scatter(f"trees {near}", 0.04 + 0.02 * near, 0.7)
        tall = trees.draw("tall", 0.02, 0.06 + 0.03 * near) * (0.4 + view.wave(f"grove {near}", 3))
        line = ground + np.maximum(0, tall - 3 * np.abs(trees.offset)).max(0)
        wood = mix(forest, meadow, 0.7 * ramp(0, 0.16, ground - view.y))
        paint(image, mix(wood, horizon, 0.3 - 0.3 * near), view.below(line))
    return image


def dunes(view: View) -> np.ndarray:
    """Waves of sand, each crest a crisp line between a lit and a shaded face."""
    zenith, horizon, lit, shade, far, disc = view.colours(
        "5f8fc4  f6e3c0  f0b45e a8622f e6b98a fff6d8",
        "2f7cc8  d9eaf0  f6c878 bd7a3c e8cfa4 ffffff",
        "6a5a9c  f7a86c  e8894a 7a3f45 d98a72 ffe2a8",
    )
    image = view.sky(zenith, horizon, 0.4)
    sun(image, view, disc, 0.68, 0.85, 0.045)
    ripples = view.texture("ripples", 5, 45, 2) - 0.5
    lift = 0.2 * (view.wave("lift", 0.3) - 0.5)
    for rank in range(5):
        near = rank / 4
        spacing, width = 0.6 + 0.5 * near, 0.15 + 0.15 * near
        heaps = view.scatter(f"dune {rank}", spacing, 0.4)
        domes = 0.5 * (width - np.sqrt(width * width + np.square(heaps.offset)))
        lines = heaps.draw("top", -0.06, 0.1) * (0.7 + 0.6 * near) + domes
        dune = heaps.pick(lines)
        swell = 0.05 * view.wave(f"swell {rank}", 1.5, 2)
        line = 0.54 - 0.42 * near + lines.max(0) + swell + lift * (1 - near)
        down = np.maximum(line - view.y, 0)
        crest = dune.draw("turn", 0.6, 1.6) * down * (1 - down * dune.draw("bend", 1.5, 4.5))
        lee = view.edge(dune.offset - crest * (1 - 2 * dune.chance("left", 0.5)))
        lee = lee * (1 - 0.8 * smooth(ramp(0.1, 0.42, np.abs(dune.offset) / spacing)))
        face = mix(lit, shade, np.minimum(0.85 * lee + 0.5 * ramp(0, 0.3, down), 1))
        face = mix(face * (1 + 0.1 * near * ripples), mix(far, horizon, 0.5), 0.8 * (1 - near))
        paint(image, face, view.below(line))
    return image


def ocean(view: View) -> np.ndarray:
    """Rolling waves with foaming crests under heaped clouds."""
    zenith, horizon, light, deep, foam, cloud, shade = view.colours(
        "4b8fd6  e8f3f2  4fb3c4 0f4c81 ffffff ffffff b9cadd",
        "6c86c4  fbd9c0  5c9fb4 1d3f73 fff4ea ffeedd b79db4",
        "48518f  f7a170  6f86a6 1c2a55 ffd8b8 f8b892 775f8e",
    )
    level = view.fixed("level", 0.46, 0.6)
    image = view.sky(zenith, horizon, level)
    clouds(image, view, "high", level + 0.2, 0.24, cloud, shade)
    cloud, shade = mix(cloud, horizon, 0.4), mix(shade, horizon, 0.4)
    clouds(image, view, "low", level + 0.03, 0.13, cloud, shade)
    isles = view.scatter("isle", 1.6, 0.8).nearest()
    shore = level + isles.draw("top", -0.05, 0.1) - 0.35 * np.abs(isles.offset)
    shore = shore + 0.03 * view.wave("rock", 9, 2)
    paint(image, mix(mix(deep, shade, 0.5), horizon, 0.35), view.below(shore))
    paint(image, mix(light, horizon, 0.5), view.below(np.float32(level)))
    for rank in range(1, 8):
        near = rank / 7
        swell = 1 - np.abs(2 * view.wave(f"swell {rank}", 5 - 3.4 * near) - 1)
        chop = view.wave(f"chop {rank}", 16 - 9 * near)
        line = level * (1 - 0.95 * near * np.sqrt(near)) + near * (0.14 * swell + 0.025 * chop)
        down = line - view.y
        body = mix(light, deep, (0.5 + 0.5 * near) * ramp(0, 0.2 * near + 0.02, down))
        paint(image, mix(body, horizon, 0.35 * (1 - near)), view.below(line))
        crest = ramp(0.35, 0.8, swell)
        thick = (0.004 + 0.022 * near) * (0.5 + chop) * crest
        paint(image, foam, 0.8 * ramp(0, 0.3, crest) * view.below(line) * view.edge(thick - down))
    return image


def pines(view: View) -> np.ndarray:
    """Ranks of conifers that fade into the mist between them."""
    sky, glow, far, dark, mist = view.colours(
        "a9c6cf eef3ea 86abab 0f2f2c dbe8e4",
        "c9cf9f fff0c0 9cab78 1c3320 f6ebc4",
        "9aa3cf f6d9df 8b92b8 1b2444 e6d6e4",
    )
    image = view.sky(sky, glow, 0.3)
    sun(image, view, mix(glow, 1, 0.5), 0.72, 0.9, 0.06)
    for rank in range(5):
        near = rank / 4
        ground = 0.42 - 0.5 * near + 0.2 * view.wave(f"ground {rank}", 0.9, 2)
        cover = view.below(ground)
        for row in range(2):
            spacing = 0.07 + 0.05 * near + 0.19 * near * near
            tree = view.scatter(f"tree {rank} {row}", spacing, 0.7).nearest()
            tall = tree.draw("tall", 0.14, 0.26) * (0.8 + 1.6 * near)
            down = ground + tall - view.y
            tier = down * (tree.draw("tiers", 5, 8) / tall)
            spread = tree.draw("spread", 0.16, 0.24) * down * (0.7 + 0.5 * (tier - np.floor(tier)))
            cover = np.maximum(cover, view.edge(spread - np.abs(tree.offset)) * view.edge(down))
        colour = mix(mix(far, dark, near), mist, 0.45 * (1 - near) * (1 - near))
        fog = smooth(ramp(-0.2 - 0.1 * near, 0.22, ground - view.y))
        paint(image, mix(colour, mist, (0.85 - 0.45 * near) * fog), cover)
    return image


def city(view: View) -> np.ndarray:
    """A skyline at dusk with lit windows, mirrored in a river."""
    zenith, glow, far, dark, lamp = view.colours(
        "27306b  f59a76 8a6f98 1f2247 ffd98a",
        "1c2a58  c78fb4 6a6798 161b3d ffe2a0",
        "3a3f86  ffc27a a9829a 2a274f fff0b0",
    )
    shore = view.fixed("shore", 0.22, 0.34)
    depth = shore - view.y
    ripple = view.texture("ripple", 3, 50) - 0.5
    up = replace(view, y=np.where(depth > 0, shore + 1.2 * depth + 0.05 * ripple, view.y))
    image = up.sky(zenith, glow, shore + 0.05)
    sun(image, up, lamp, 0.6, 0.85, 0.05)
    haze = 1 - ramp(shore, shore + 0.35, up.y)
    for rank in range(6):
        near = rank // 2 / 2
        block = up.scatter(f"block {rank}", 0.13 + 0.1 * near, 0.4).nearest()
        tall = np.square(block.draw("tall")) * (0.4 + view.wave("centre", 0.5))
        roof = shore + 0.16 - 0.1 * near + (0.42 - 0.16 * near) * tall
        half = block.draw("width", 0.035, 0.065) * (1 + 0.5 * near)
        aside = np.abs(block.offset)
        roof = roof - 0.05 * block.chance("step", 0.4) * (aside > 0.55 * half)
        spire = 0.09 * block.chance("spire", 0.2) * ramp(0.012, 0, aside)
        wall = mix(mix(far, dark, near), glow, (0.4 - 0.3 * near) * haze)
        wall = wall * (1 - 0.18 * np.sign(block.offset))
        if rank > 1:
            inside = (aside < half - 0.01) & (up.y < roof - 0.02)
            wall = mix(wall, lamp, 0.75 * inside * panes(up, block, shore))
        cover = up.below(roof + spire) * up.edge(half - aside) * block.chance("built", 0.85)
        paint(image, wall, cover)
    water = mix(mix(glow, zenith, ramp(0, 0.3, depth)), lamp, 0.5 * ramp(0.1, 0.4, ripple))
    paint(image, water, ramp(0, 0.01, depth) * (0.3 + 0.2 * ramp(0, 0.3, depth)))
    paint(image, dark, 0.9 * view.edge(0.01 - np.abs(depth)))
    return image


def canyon(view: View) -> np.ndarray:
    """Banded red mesas and buttes that stand in a desert plain."""
    zenith, horizon, red, cream, shade, sand, bush = view.colours(
        "3f8fd6  e6f0ea  c8643c ecb98a 7a3a34 d9965c 7a8450",
        "6f9fd0  fbe6c4  d9743f f6cf96 8a4038 e3a564 86804a",
        "6a5c9e  fbb184  b84a3c e69a72 5f2c40 c47a5a 6a5a48",
    )
    image = view.sky(zenith, horizon, 0.3)
    wisps(image, view)
    bed = (view.y + 0.08 * view.wave("tilt", 0.4)).astype(np.float64)
    thick, thin = (view.noise(bed * f, "bed", f) for f in (14, 32))
    bands = smooth(ramp(0.3, 0.7, 0.6 * thick + 0.4 * thin))
    for rank in range(3):
        near = rank / 2
        foot, spacing, air = 0.37 - 0.22 * near, 0.55 + 0.65 * near, 0.6 - 0.55 * near
        mesas = view.scatter(f"mesa {rank}", spacing, 0.5)
        flutes = view.wave(f"flutes {rank}", 18, 2) - 0.5
        outs = np.abs(mesas.offset) - mesas.draw("half", 0.03, 0.36) * spacing + 0.06 * flutes
        slopes = np.clip(9 * outs, 0, 0.55) + np.clip(2.2 * (outs - 0.06), 0, 0.5)
        rises = mesas.draw("tall", 0.14, 0.36) * (0.8 + 0.7 * near) * (1 - slopes)
        mesa, out = mesas.pick(rises), outs.min(0)
        plain = foot + 0.03 * view.wave(f"plain {rank}", 1.5, 2)
        line = np.maximum(foot + rises.max(0) + 0.02 * flutes * (out < 0), plain - 0.01)
        lee = 0.55 * ramp(-0.02, 0.03, out) * (mesa.offset > 0) + 0.35 * ramp(0.1, 0.4, flutes)
        rock = mix(mix(red, cream, bands * (0.75 - 0.25 * (out > 0.05))), shade, lee)
        paint(image, mix(rock, horizon, air), view.below(line))
        down = plain - view.y
        scrub = ramp(0.55, 0.7, view.texture(f"scrub {rank}", 8, 26, 2)) * ramp(0, 0.04, down)
        desert = mix(mix(sand, red, ramp(0, 0.4, down)), bush, 0.6 * scrub)
        paint(image, mix(desert, horizon, 0.8 * air), view.below(plain))
    return image


def aurora(view: View) -> np.ndarray:
    """Northern lights above a snowfield with dark spruces."""
    zenith, night, low, high, snow, blue, spruce = view.colours(
        "060b2a  1d3a5c 5cf2a0 8a5ce0 c8e8ee 3f6f96 0b1d2c",
        "0a0a30  23305e 6af0c8 d65cc0 d0d8f4 4c5f9c 0f1836",
        "041226  14474f a0f070 3fb8d0 c4f0e0 2f7080 082026",
    )
    image = view.sky(zenith, night, 0.25)
    stars(image, view)
    for curtain in range(3):
        hem = 0.28 + 0.1 * curtain + 0.28 * view.wave(f"hem {curtain}", 0.7, 2)
        rays = 0.45 + 0.4 * view.wave(f"rays {curtain}", 9) + 0.3 * view.wave(f"fine {curtain}", 26)
        veil = 0.2 + 0.8 * smooth(ramp(0.25, 0.7, view.wave(f"veil {curtain}", 0.6)))
        up = view.y - hem
        tall = 0.1 + 0.2 * view.wave(f"tall {curtain}", 2.5)
        glow = ramp(-0.025, 0.02, up) / (1 + np.square(np.maximum(up, 0) / tall))
        image += mix(low, high, ramp(0, 0.4, up)) * (0.75 * glow * rays * veil)
    for rank in range(3):
        near = rank / 2
        line = 0.25 - 0.16 * near + 0.16 * view.wave(f"hill {rank}", 0.9 + 0.4 * near, 2)
        drift = view.texture(f"drift {rank}", 1.6, 6, 2) - 0.4
        face = mix(snow, blue, np.clip(0.7 * ramp(0, 0.22, line - view.y) + 0.9 * drift, 0, 1))
        paint(image, mix(mix(face, low, 0.15), night, 0.75 - 0.6 * near), view.below(line))
        tree = view.scatter(f"spruce {rank}", 0.09 + 0.14 * near, 0.8).nearest()
        down = line + tree.draw("tall", 0.04, 0.13) * (0.7 + 0.9 * near) - view.y
        cover = view.edge(0.22 * down - np.abs(tree.offset)) * tree.chance("there", 0.6)
        cover = cover * view.edge(down) * view.edge(view.y - line + 0.01 + 0.02 * near)
        paint(image, mix(spruce, night, 0.5 - 0.5 * near), cover)
    return image


def meadow(view: View) -> np.ndarray:
    """Flowering hills with round trees below fair-weather clouds."""
    zenith, horizon, far, green, dark, wood, petal, pale, shade = view.colours(
        "3f93e0  dff1fb  8fb6c4 8cc63f 3f8f3a 2c6b34 ff5a5f ffffff c2d4e6",
        "4fa3e6  eaf6f0  9fc4b4 b5d23f 5fa032 3f7a2c f4b6e0 fff7b0 cddbe6",
        "5f8fd0  fdeed0  a4b49c a8b83f 4f7f3c 3a5f34 8f6ae0 ffd54a d6cfd4",
    )
    image = view.sky(zenith, horizon, 0.45)
    clouds(image, view, "high", 0.76, 0.24, np.float32(1), shade)
    clouds(image, view, "low", 0.6, 0.14, mix(horizon, 1, 0.6), mix(horizon, shade, 0.6))
    paint(image, mix(far, horizon, 0.3), view.below(0.45 + 0.12 * view.wave("blue", 1.6, 3)))
    blades = 0.94 + 0.12 * view.texture("blades", 10, 24)
    lobes = 0.83 + 0.35 * view.texture("lobes", 20, 20)
    for rank in range(4):
        near = rank / 3
        hill = (0.22 - 0.06 * near) * view.wave(f"hill {rank}", 0.8 + 0.6 * near)
        line = 0.39 - 0.38 * near + hill
        down = line - view.y
        if rank < 3:
            tree = view.scatter(f"tree {rank}", 0.16 + 0.22 * near, 0.8).nearest()
            size = tree.draw("size", 0.02, 0.05) * (1 + 1.2 * near) * tree.chance("there", 0.6)
            up = -down - 1.5 * size
            crown = size * lobes - np.sqrt(np.square(tree.offset) + np.square(up))
            crown = view.edge(crown) * (size > 0)
            trunk = view.edge(0.16 * size - np.abs(tree.offset)) * view.below(line + size)
            leaf = mix(wood, green, 0.6 * ramp(-1.2, 1.2, (up - tree.offset) / (size + 0.001)))
            paint(image, mix(wood, far, 0.4 * (1 - near)), 0.8 * trunk * (size > 0))
            paint(image, mix(leaf, far, 0.45 * (1 - near)), crown)
        light = 0.6 * ramp(0.2, 0.8, view.wave(f"light {rank}", 1.1)) + 0.4 * ramp(0.3, 0, down)
        grass = mix(dark, green, light) * blades
        bloom = view.texture(f"bloom {rank}", 12 - 5 * near, 30 - 16 * near, 2)
        patch = ramp(0.35, 0.65, view.wave(f"patch {rank}", 1.5)) * ramp(0.01, 0.06, down)
        flower = petal if rank % 2 else pale
        field = mix(grass, flower, 0.75 * ramp(0.55, 0.7, bloom) * patch)
        paint(image, mix(field, far, 0.5 * (1 - near) * (1 - near)), view.below(line))
    return image


def birches(view: View) -> np.ndarray:
    """White trunks in a glowing autumn wood."""
    light, canopy, shadow, floor, litter, bark, grey, mark = view.colours(
        "fff0b8 f2b632 a8641e 8a5a24 d98a2e f7f3ea a9a49c 3a332e",
        "fff6d0 e6c83f 8f8a2c 6f6a2c c4a83a fbf8f0 aeb0a4 3c3a30",
        "ffe0b0 ee7f34 94381f 74341f d05a2a f6ece4 ab9c98 36292a",
    )
    image = mix(shadow, canopy, ramp(0.15, 0.75, view.texture("foliage", 3.5, 3.5, 2)))
    glow = smooth(ramp(0.4, 0, np.abs(view.y - 0.42))) * (0.4 + 0.6 * view.wave("glow", 1.2))
    paint(image, light, 0.8 * glow)
    leaves = mix(floor, litter, ramp(0.3, 0.7, view.texture("litter", 7, 20, 2)))
    for rank in range(4):
        near = rank / 3
        ground = 0.3 - 0.22 * near + 0.05 * view.wave(f"ground {rank}", 1.5, 2)
        soil = mix(leaves, light, 0.5 * (1 - near) * ramp(0.1, 0, ground - view.y))
        paint(image, soil, view.below(ground))
        trunk = view.scatter(f"trunk {rank}", 0.11 + 0.06 * near + 0.3 * near * near, 0.7).nearest()
        width = trunk.draw("width", 0.008, 0.014) * (1 + 2.6 * near)
        middle = view.y - 0.5
        lean = trunk.draw("lean", -0.07, 0.07) + trunk.draw("bow", -0.1, 0.1) * middle
        side = (trunk.offset + lean * middle) / width
        ring = trunk.cell * 7.31 + view.y.astype(np.float64) * (24 - 8 * near)
        scar = ramp(0.72, 0.84, view.noise(ring, "ring", rank))
        scar = scar * ramp(-0.9, 0.6, side * trunk.draw("face", -1, 1))
        wood = mix(mix(bark, grey, smooth(ramp(-0.2, 1.1, side))), mark, 0.7 * scar)
        cover = view.edge(width * (1 - np.abs(side))) * view.edge(view.y - ground + 0.03 * near)
        paint(image, mix(wood, mix(light, canopy, 0.4), 0.6 * (1 - near)), cover)
    crown = ramp(0.5, 0.62, view.texture("crown", 5, 6, 3) + 0.9 * (view.y - 0.9))
    paint(image, mix(canopy, litter, view.texture("crown light", 9, 9)), crown)
    return image


_SCENES = (alps, dunes, ocean, pines, city, canyon, aurora, meadow, birches)
SCENES: dict[str, Callable[[View], np.ndarray]] = {scene.__name__: scene for scene in _SCENES}
