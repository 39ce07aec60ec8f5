from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
import torch

from common import images
from common.errors import UserError
from common.report import Headline, Picture, Table, write_report

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture
def page(tmp_path):
    images.save_image(tmp_path / "a.png", torch.zeros(3, 4, 6))
    images.save_gif(tmp_path / "b.gif", torch.zeros(2, 3, 4, 4), ms=100)
    write_report(
        tmp_path / "report.html",
        "A & B",
        "Lead <here>.",
        [Headline("Psnr", "23 dB", "of 3", "at least 24 dB", False), Headline("Other", "1", "")],
        [
            Picture(tmp_path / "a.png", "A", 'It\'s "a".', rows=("one", "two"), zoom=4),
            Picture(tmp_path / "b.gif", "B", "b", zoom=0, chart=True),
            Table("T", "t", ("name", "x"), [("r<1>", "7")]),
        ],
    )
    return (tmp_path / "report.html").read_text()


def test_pictures_are_in_the_page_byte_for_byte(page, tmp_path):
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    assert [kind for kind, _ in found] == ["png", "gif"]
    assert base64.b64decode(found[0][1]) == (tmp_path / "a.png").read_bytes()
    assert base64.b64decode(found[1][1]) == (tmp_path / "b.gif").read_bytes()


def test_nothing_outside_the_page_is_asked_for(page):
    links = [v for _, k, v in Reader(page).attributes if k in ("src", "href")]
    assert links and all(v.startswith("data:") for v in links)
    assert not re.search(r"https?:|@import|url\(", page)


def test_text_is_escaped_and_shown(page):
    reader = Reader(page)
    for text in ("A & B", "Lead <here>.", "23 dB", "at least 24 dB: missed", "r<1>", "one"):
        assert text in reader.text
    assert ("img", "alt", 'It\'s "a".') in reader.attributes
    assert ("img", "style", "width:24px") in reader.attributes


def test_a_headline_without_an_aim_has_no_verdict(page):
    text = Reader(page).text
    assert text.count("missed") == 1 and ": met" not in text


def test_an_absent_picture_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot read this picture"):
        write_report(tmp_path / "r.html", "", "", [], [Picture(tmp_path / "gone.png", "", "")])
    assert not (tmp_path / "r.html").exists()
