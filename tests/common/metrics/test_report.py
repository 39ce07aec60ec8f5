from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from common import images
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import Collector, Loading
from common.metrics.features import Extractor
from common.metrics.fid import Statistics
from common.metrics.references import Reference, of_features
from common.metrics.report import (
    Judge,
    Measures,
    add_metric_flags,
    choose,
    measure,
    measure_images,
    measures_of,
    table,
)
from common.metrics.sources import open_images

CPU = torch.device("cpu")
ALONE = Process(0, 0, 1, CPU)


class Means(nn.Module):
    """The means of the first four rows of the first colour, as features and as logits."""

    def forward(self, pictures):
        return pictures[:, 0, :4].float().mean(2).repeat(1, 2)


@pytest.fixture
def extractor():
    return Extractor("inception", Means(), 4, 4, "abc", "file.pth", True, "none", CPU)


@pytest.fixture
def pictures():
    noise = torch.Generator().manual_seed(0)
    return torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=noise)


def collected(extractor, pictures):
    collector = Collector(extractor)
    collector.add(pictures)
    return collector.features()


@pytest.fixture
def reference(extractor, pictures):
    return of_features(collected(extractor, pictures[20:]), {"source": "there"}, "there")


@pytest.fixture
def statistics():
    return Reference(Statistics(torch.zeros(4).double(), torch.eye(4).double()), None, {})


def test_a_set_against_itself(extractor, pictures, reference):
    found = measure(collected(extractor, pictures[20:]), reference, extractor, Measures())
    figures = found["figures"]
    assert figures["fid"] == pytest.approx(0, abs=1e-6)
    assert figures["precision"] == figures["recall"] == 1
    assert "20 images of images are in there too, pixel by pixel" in found["warnings"]
    assert found["images"]["digest"] == found["reference"]["digest"]
    apart = measure(collected(extractor, pictures[:20]), reference, extractor, Measures())
    assert apart["figures"]["fid"] > 1 and apart["warnings"] == []
    text = table(apart)
    assert text.startswith("20 images of images\nagainst 20 images of there\nextractor inception")
    assert f"{apart['figures']['fid']:.6g}" in text


def test_what_a_reference_allows(extractor, reference, statistics):
    def allowed(metrics, extractor, statistics, features):
        return choose(Measures(metrics), extractor, statistics, features)

    assert allowed(None, extractor, True, True) == (("fid", "is", "kid", "prc"), {})
    metrics, left = allowed(None, extractor, True, False)
    assert metrics == ("fid", "is")
    assert left == dict.fromkeys(("kid", "prc"), "the reference has statistics only, not images")
    metrics, left = allowed(None, extractor, False, False)
    assert metrics == ("is",) and left["fid"] == left["prc"] == "there is no reference"
    without = replace(extractor, name="dinov2", classes=0)
    assert allowed(None, without, True, True)[1] == {"is": "dinov2 names no classes"}
    assert allowed(("prc",), extractor, True, True) == (("prc",), {})
    for metric, given in (("kid", (extractor, True, False)), ("is", (without, True, True))):
        with pytest.raises(UserError, match=f"--metrics: found {metric}, but "):
            allowed((metric,), *given)


def test_without_a_reference_there_is_the_score(extractor, pictures):
    found = measure(collected(extractor, pictures), None, extractor, Measures())
    assert found["figures"].keys() == {"inception_score", "inception_score_std"}
    assert found["reference"] is None and found["not_measured"].keys() == {"fid", "kid", "prc"}


def test_too_few_images_are_refused(extractor, pictures, reference, statistics):
    few = collected(extractor, pictures[:3])
    with pytest.raises(UserError, match=r"mine: found 3 image\(s\), expected at least 4 for prc"):
        measure(few, reference, extractor, Measures(), "mine")
    assert measure(few, statistics, extractor, Measures())["figures"]["fid"] > 0
    with pytest.raises(UserError, match=r"mine: found 1 image\(s\), expected at least 2 for fid"):
        one = collected(extractor, pictures[:1])
        measure(one, statistics, extractor, Measures(), "mine")
    with pytest.raises(UserError, match=r"--splits: found 2 for 3 images"):
        measure(few, statistics, extractor, Measures(splits=2))


def test_random_features_say_so_in_every_name(extractor, pictures, reference):
    random = replace(extractor, name="random:3", file=None)
    found = measure(collected(random, pictures[:20]), reference, random, Measures(splits=2))
    assert len(found["figures"]) == 9
    assert all(name.startswith("random_features_") for name in found["figures"])
    assert any("no figure here is an FID" in text for text in found["warnings"])


def test_weights_that_cannot_be_compared_are_told(extractor, pictures, statistics):
    unknown = replace(extractor, verified=False)
    found = measure(collected(unknown, pictures), statistics, unknown, Measures())
    assert "file.pth: no published SHA-256 to compare these weights with" in found["warnings"]
    wide = replace(extractor, width=4)
    few = measure(collected(wide, pictures[:4]), statistics, wide, Measures())
    assert few["warnings"] == [
        "4 images for 4 features: the Fréchet distance is far larger than that of many images"
    ]


def test_a_jpeg_is_a_warning_among_images_of_any_origin_and_an_error_among_generated_ones(
    extractor, pictures, statistics, tmp_path
):
    for k, picture in enumerate(pictures[:6]):
        images.save_image(tmp_path / f"{k}.png", picture)
    Image.open(tmp_path / "5.png").save(tmp_path / "5.jpg")
    (tmp_path / "5.png").unlink()
    measures = Measures(loading=Loading(4))
    found = measure_images(open_images(tmp_path), statistics, extractor, measures, ALONE)
    assert found["warnings"] == [
        f"{tmp_path}: 1 of 6 images are JPEG or WebP, whose compression changes every figure"
    ]
    assert found["images"]["preparation"] == "as they are" and found["seconds"] > 0
    files = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"5.jpg: found JPEG"):
        Judge(measures, extractor, statistics, ALONE).measure(files)
    found = Judge(measures, extractor, statistics, ALONE).measure(files[:5])
    assert found["images"]["images"] == 5 and found["images"]["source"] == str(tmp_path)


def test_flags():
    parser = argparse.ArgumentParser()
    add_metric_flags(parser)
    assert measures_of(parser.parse_args([])) == Measures()
    words = "--fid_stats a.npz --metrics kid,fid,kid --extractor random --splits 3 --metric_bsz 5"
    flags = parser.parse_args(words.split())
    expected = Measures(("kid", "fid"), "random", 3, Loading(5, 0))
    assert measures_of(flags) == expected and flags.reference == "a.npz"
    with pytest.raises(UserError, match="--metrics: found 'fdi', expected some of fid,is,kid,prc"):
        measures_of(parser.parse_args(["--metrics", "fdi"]))
    with pytest.raises(UserError, match="--metric_workers: found -1, expected at least 0"):
        measures_of(parser.parse_args(["--metric_workers", "-1"]))
