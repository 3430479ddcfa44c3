"""A document as a list of blocks, written as one self-contained HTML page and as Markdown with its pictures in a folder.

Blocks hold plain text: what is markup in HTML or Markdown is escaped on the way out, wherever the text came from. The page needs
no network and no script; it is legible on a dark screen, where pictures keep their white ground, and on paper.
"""

import base64
import dataclasses
import html
import math
import re
from collections.abc import Sequence

from noisesched.runtime.files import replacing

STYLE = """
:root { color-scheme: light dark; --ink: #1c2329; --soft: #5b6770; --line: #d9dee3; --ground: #fff; --tint: #f3f6f9; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #a1abb5; --line: #39424b; --ground: #14181c; --tint: #1e242a; --mark: #6cb8ec; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 70rem; background: var(--ground); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", Cambria, Georgia, serif }
h1, h2, h3, table, summary, nav, figcaption, .tiles { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; text-wrap: balance }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p, li { max-width: 46rem } li { margin: .3rem 0 }
.lead { font-size: 1.15rem; color: var(--soft); margin: 0 0 1.5rem }
.abstract { background: var(--tint); border-left: 4px solid var(--mark); border-radius: 4px; padding: .2rem 1.4rem; margin: 1.5rem 0 }
.abstract p { max-width: 56rem }
nav { font-size: .85rem; line-height: 1.9 } nav a { margin-right: 1.1rem; white-space: nowrap } a { color: var(--mark) }
figure { margin: 1.5rem 0 } figure img { display: block; width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px }
figcaption, .caption { font-size: .87rem; line-height: 1.45; color: var(--soft); margin: .6rem 0 0; max-width: 54rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom }
th.n, td.n { text-align: right; white-space: nowrap }
tr[class] td:last-child { white-space: nowrap }
tr.better td:last-child { color: var(--mark); font-weight: 600 } tr.worse td:last-child { color: #d55e00; font-weight: 600 }
pre { background: var(--tint); padding: .8rem 1rem; border-radius: 6px; font-size: .84rem; white-space: pre-wrap; overflow-wrap: anywhere }
details { margin: 1rem 0 } summary { cursor: pointer; color: var(--mark); font-size: .92rem }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --ground: #fff; --tint: #f5f5f5; --mark: #00558a }
  body { font-size: 10pt; max-width: none; padding: 0 } nav { display: none } figure, tr, .abstract { break-inside: avoid }
  h2, h3 { break-after: avoid } .wide { overflow: visible } table { font-size: 7.5pt } }
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Title:
    """The document's heading, and the line under it."""

    text: str
    lead: str

    def html(self):
        return f'<h1>{_html(self.text)}</h1>\n<p class="lead">{_html(self.lead)}</p>'

    def markdown(self, pictures):
        return f"# {_inline(self.text)}\n\n*{_inline(self.lead)}*"


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2

    @property
    def anchor(self):
        return re.sub(r"[^a-z0-9]+", "-", self.text.lower()).strip("-")

    def html(self):
        return f'<h{self.level} id="{self.anchor}">{_html(self.text)}</h{self.level}>'

    def markdown(self, pictures):
        return f"{'#' * self.level} {_inline(self.text)}"


@dataclasses.dataclass(frozen=True)
class Text:
    text: str

    def html(self):
        return f"<p>{_html(self.text)}</p>"

    def markdown(self, pictures):
        return _markdown(self.text)


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences; `abstract`: set apart, as the first thing to be read."""

    items: Sequence[str]
    abstract: bool = False

    def html(self):
        if self.abstract:
            return '<div class="abstract">' + "".join(f"<p>{_html(item)}</p>" for item in self.items) + "</div>"
        return "<ul>" + "".join(f"<li>{_html(item)}</li>\n" for item in self.items) + "</ul>"

    def markdown(self, pictures):
        if self.abstract:
            return "\n>\n".join(f"> {_markdown(item)}" for item in self.items)
        return "\n".join(f"- {_markdown(item)}" for item in self.items)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts. Columns whose cells all begin like numbers are set to the right.

    folded   a line; the table is behind it until one opens it
    classes  of each row, for its looks: "better", "worse", ..
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: str = ""
    classes: Sequence[str] = ()

    @property
    def numeric(self):
        number = re.compile(r"^([-+]?[\d.,]+(e[-+]\d+)?%?( .*)?|-|)$")
        columns = [[row[column] for row in self.rows] for column in range(len(self.header))]
        return [all(map(number.match, cells)) and any(cell not in ("-", "") for cell in cells) for cells in columns]

    def html(self):
        sides = [' class="n"' if numeric else "" for numeric in self.numeric]
        line = lambda tag, cells: "".join(f"<{tag}{side}>{_html(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True))
        classes = [kind.replace(" ", "-") for kind in self.classes] or [""] * len(self.rows)
        rows = "\n".join(
            f'<tr class="{_html(kind)}">{line("td", row)}</tr>' if kind else f"<tr>{line('td', row)}</tr>"
            for row, kind in zip(self.rows, classes, strict=True)
        )
        head = f"<thead><tr>{line('th', self.header)}</tr></thead>"
        table = f'<div class="wide"><table>{head}\n<tbody>\n{rows}\n</tbody></table></div>'
        if self.caption:
            table += f'<p class="caption">{_html(self.caption)}</p>'
        return f"<details><summary>{_html(self.folded)}</summary>{table}</details>" if self.folded else table

    def markdown(self, pictures):
        line = lambda cells: "| " + " | ".join(_inline(cell).replace("|", r"\|") for cell in cells) + " |"
        rule = f"|{'|'.join(' ---: ' if numeric else ' --- ' for numeric in self.numeric)}|"
        table = "\n".join([line(self.header), rule, *map(line, self.rows)])
        if self.caption:
            table += f"\n\n*{_inline(self.caption)}*"
        return f"<details><summary>{_html(self.folded)}</summary>\n\n{table}\n\n</details>" if self.folded else table


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file's bytes; `name` is its file's in the Markdown version, without ending."""

    name: str
    png: bytes
    caption: str

    def html(self):
        data = base64.b64encode(self.png).decode()
        return (
            f'<figure><img alt="{_html(self.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_html(self.caption)}</figcaption></figure>"
        )

    def markdown(self, pictures):
        return f"![{_inline(self.name)}]({pictures}/{self.name}.png)\n\n*{_inline(self.caption)}*"


@dataclasses.dataclass(frozen=True)
class Code:
    text: str

    def html(self):
        return f"<pre>{_html(self.text)}</pre>"

    def markdown(self, pictures):
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", self.text)), 3)
        return f"{fence}\n{self.text}\n{fence}"


# -- numbers as text


def number(value):
    """Three digits: "0.0123", "4.56", "1,230", "1.2e-07"."""
    return (
        f"{value:.{_decimals(value)}f}"
        if 1e-4 <= abs(value) < 1000
        else f"{value:,.0f}"
        if 1000 <= abs(value) < 1e6
        else ("0" if value == 0 else f"{value:.1e}")
    )


def plus_minus(mean, spread):
    """ "4.56 ± 0.12": to two digits of the spread, or one where the mean would have more than four; without a spread, three."""
    if spread is None:
        return number(mean)
    if abs(mean) >= 1e6 or not 1e-4 <= spread < 1e6:
        return f"{number(mean)} ± {number(spread)}"
    decimals = max(min(_decimals(spread) - 1, _decimals(mean) + 1), _decimals(spread) - 2, 0)
    return f"{mean:,.{decimals}f} ± {spread:,.{decimals}f}"


def _decimals(value):
    """How many show three digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0


# -- on disk


def write(blocks, folder, name):
    """Writes `name`.html, `name`.md and the folder `name`_pictures; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / f"{name}_pictures"
    shown = [block for block in blocks if isinstance(block, Picture)]
    if shown:
        pictures.mkdir(exist_ok=True)
    for picture in shown:
        _write(pictures / f"{picture.name}.png", picture.png)
    markdown = "\n\n".join(block.markdown(pictures.name) for block in blocks) + "\n"
    _write(folder / f"{name}.md", markdown.encode())
    _write(folder / f"{name}.html", page(blocks).encode())


def page(blocks):
    """The HTML page of blocks, the first of which is a Title."""
    places = "\n".join(
        f'<a href="#{block.anchor}">{_html(block.text)}</a>'
        for block in blocks
        if isinstance(block, Heading) and block.level == 2
    )
    first, *rest = (block.html() for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_html(blocks[0].text)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{first}\n<nav>{places}</nav>\n" + "\n".join(rest) + "\n</body>\n</html>\n"
    )


def _write(path, content):
    with replacing(path) as file:
        file.write(content)


def _html(text):
    return html.escape(str(text), quote=True)


def _markdown(text):
    """A block of its own: as `_inline`, and with nothing at its beginning that would make a list, a heading or a quotation."""
    text = re.sub(r"^(?=>|[-+](\s|$)|-+$|#{1,6}(\s|$)|\[[ xX]\]\s)", r"\\", _inline(text))
    return re.sub(r"^(\d{1,9})(?=[.)](\s|$))", r"\1\\", text)


def _inline(text):
    """On one line, with nothing in it that Markdown, GitHub's, or the HTML in it would read as its own.

    What is no markup where it stands stays as it is: "log_snr", "8.84", "train[:90%]".
    """
    text = " ".join(str(text).split())
    markup = r"\\(?=[^\w\s]|$)|[`*~$]|(?<!\w)_+|_+(?!\w)|\](?=[(:])"
    text = re.sub(markup, lambda found: "".join(f"\\{character}" for character in found[0]), text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)
