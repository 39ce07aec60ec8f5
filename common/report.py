"""One HTML page that holds everything it shows, pictures included."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from common.errors import UserError
from common.io import replacing


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page.

    Args:
        name: what it measures.
        value: the number with its unit.
        note: how it was measured.
        aim: what it should reach, in words; empty if there is no aim.
        met: whether it does.
    """

    name: str
    value: str
    note: str
    aim: str = ""
    met: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture file under a title, with a sentence below.

    Args:
        path: of the file, which is copied into the page.
        rows: names of the picture's rows, from top to bottom.
        zoom: pixels on the page for each pixel of a small picture; 0 fits a large one to the page.
        chart: whether it is a drawing on white, whose lightness is inverted on a dark page.
    """

    path: Path
    title: str
    sentence: str
    rows: Sequence[str] = ()
    zoom: float = 1
    chart: bool = False


@dataclass(frozen=True)
class Table:
    """A table under a title, with a sentence above.

    Args:
        header: a cell for each column.
        rows: cells of each row; the first one names it.
        words: whether the cells are words, which begin at the left, rather than numbers.
    """

    title: str
    sentence: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


def write_report(
    path: str | Path,
    title: str,
    lead: str,
    headlines: Sequence[Headline],
    sections: Sequence[Picture | Table],
) -> None:
    """Write the page.

    Args:
        path: the file to write.
        title, lead: heading of the page and the sentence under it.
        headlines: numbers at its top.
        sections: pictures and tables in their order.

    Raises:
        UserError: a picture is missing.
    """
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>",
        '<section class="headlines">',
        *map(_headline, headlines),
        "</section>",
        *(_picture(s) if isinstance(s, Picture) else _table(s) for s in sections),
    ]
    page = PAGE.format(title=escape(title), style=STYLE, body="\n".join(body))
    with replacing(path, durable=False) as file:
        file.write(page.encode())


def _headline(headline: Headline) -> str:
    verdict = "met" if headline.met else "missed"
    aim = f'<p class="aim {verdict}">{escape(headline.aim)}: {verdict}</p>' if headline.aim else ""
    return (
        f"<div><h2>{escape(headline.name)}</h2>"
        f'<p class="value">{escape(headline.value)}</p>{aim}<p>{escape(headline.note)}</p></div>'
    )


def _picture(picture: Picture) -> str:
    try:
        data = picture.path.read_bytes()
    except OSError as error:
        raise UserError(f"{picture.path}: cannot read this picture ({error.strerror})") from None
    kind = mimetypes.guess_type(picture.path.name)[0] or "image/png"
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    size = _size(picture)
    style = f' style="width:{size[0] * picture.zoom:.0f}px"' if picture.zoom else ""
    kinds = " ".join(
        name for name, on in (("chart", picture.chart), ("fit", not picture.zoom)) if on
    )
    names = "".join(f"<span>{escape(row)}</span>" for row in picture.rows)
    names = f'<div class="rows" aria-hidden="true">{names}</div>' if names else ""
    return (
        f"<section><h2>{escape(picture.title)}</h2><figure>"
        f'<div class="frame">{names}{_scroll(picture.title)}'
        f'<img class="{kinds}" alt="{escape(picture.sentence)}" width="{size[0]}" '
        f'height="{size[1]}"{style} src="{source}"></div></div>'
        f"<figcaption>{escape(picture.sentence)}</figcaption></figure></section>"
    )


def _size(picture: Picture) -> tuple[int, int]:
    try:
        with Image.open(picture.path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{picture.path}: not a readable picture ({error})") from None


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    kind = "words" if table.words else "numbers"
    return (
        f"<section><h2>{escape(table.title)}</h2><p>{escape(table.sentence)}</p>"
        f'{_scroll(table.title)}<table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _scroll(name: str) -> str:
    """The start of a box that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root {
  --page: #fbfbf9; --card: #ffffff; --text: #1d1f23; --soft: #5c626c; --line: #dfe1e4;
  --good: #17693a; --bad: #a3321f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1c1f25; --text: #e7e9ec; --soft: #a2a9b4; --line: #333842;
    --good: #6fcf97; --bad: #ff9c85;
  }
  img.chart { filter: invert(0.88) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.4rem); line-height: 1.15; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .6rem; }
p { margin: 0 0 .6rem; }
header p, section > p, figcaption { max-width: 46rem; color: var(--soft); }
section { margin-top: 2.6rem; }
.headlines {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr));
}
.headlines > div {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.1rem;
}
.headlines h2 { font-size: .95rem; font-weight: 600; margin: 0; color: var(--soft); }
.headlines p { font-size: .875rem; color: var(--soft); margin: 0; }
.headlines p.value {
  font-size: 2rem; line-height: 1.3; color: var(--text); font-variant-numeric: tabular-nums;
}
.headlines p.aim { font-weight: 600; margin-bottom: .4rem; }
.headlines p.met { color: var(--good); }
.headlines p.missed { color: var(--bad); }
figure { margin: 0; }
.frame { display: flex; max-width: 100%; width: fit-content; gap: .6rem; }
.rows { display: flex; flex-direction: column; flex: none; }
.rows span {
  flex: 1; display: flex; align-items: center; justify-content: flex-end;
  font-size: .8rem; color: var(--soft);
}
.scroll { overflow-x: auto; min-width: 0; border-radius: .3rem; }
.frame .scroll { font-size: 0; }
img { max-width: none; height: auto; }
img.fit { width: 100%; min-width: 40rem; }
figcaption { margin-top: .6rem; font-size: .95rem; }
table { border-collapse: collapse; font-size: .925rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
table.words :is(th, td) { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
table.words th { overflow-wrap: normal; }
"""
