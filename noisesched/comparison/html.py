"""A document written once, as Markdown, and rendered from it as one self-contained HTML page.

All texts are escaped when a block is made, so that none is read as markup; the renderer allows no HTML, no links, and no pictures
but the document's own. The page needs no network and no script. It is legible on a dark screen, where pictures keep their white
background, on a phone and on paper.
"""

import base64
import html
import re
from typing import NamedTuple

from markdown_it import MarkdownIt

from noisesched.runtime.files import replacing

STYLE = """
:root { color-scheme: light dark; --ink: #1c2329; --soft: #5b6770; --line: #d9dee3; --ground: #fff; --tint: #f3f6f9;
  --mark: #0072b2; --warn: #b84f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #a1abb5; --line: #39424b; --ground: #14181c; --tint: #1e242a; --mark: #6cb8ec; --warn: #f0a05a; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: clamp(1.2rem, 5vw, 3rem) 1.25rem 5rem; max-width: 70rem; background: var(--ground);
  color: var(--ink); font: 17px/1.55 Charter, "Bitstream Charter", Cambria, Georgia, serif; overflow-wrap: break-word }
h1, h2, table, summary, nav, em { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; text-wrap: balance }
h1 + p em { font-size: 1.15rem }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .6rem; border-top: 1px solid var(--line) }
p, li { max-width: 46rem } p:has(img) { max-width: none } li { margin: .3rem 0 }
em { font-style: normal; font-size: .87rem; line-height: 1.45; color: var(--soft); display: block; max-width: 54rem }
blockquote { background: var(--tint); border-left: 4px solid var(--mark); border-radius: 4px; padding: .2rem 1.4rem; margin: 1.5rem 0 }
blockquote p { max-width: 56rem; margin: .6rem 0 }
nav { font-size: .85rem; line-height: 1.9 } nav a { margin-right: 1.1rem; white-space: nowrap } a { color: var(--mark) }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; margin-top: 1.5rem }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .84rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; margin: 1rem 0 .6rem }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom }
td[style*=right] { white-space: nowrap }
td strong { color: var(--mark) } td em { display: inline; color: var(--warn); font-size: inherit; font-weight: 600 }
pre { background: var(--tint); padding: .8rem 1rem; border-radius: 6px; font-size: .84rem; white-space: pre-wrap; overflow-wrap: anywhere }
details { margin: 1rem 0 } summary { cursor: pointer; color: var(--mark); font-size: .92rem }
@media (max-width: 44rem) { p:has(img) { overflow-x: auto } img { max-width: max(100%, 40rem) } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --ground: #fff; --tint: #f5f5f5; --mark: #00558a }
  body { font-size: 10pt; max-width: none; padding: 0 } nav { display: none } img, tr, blockquote { break-inside: avoid }
  h2 { break-after: avoid } table { display: table; font-size: 7.5pt } }
"""  # noqa: E501
NUMBER = re.compile(r"([-+]?[\d.,]+(e[-+]\d+)?%?( .*)?|-|)")
PIXEL = 0.8  # scale of pictures, so that their text is as large as the page's
LOUD = {"better": "**better**", "worse": "*worse*"}  # highlighted cells


class Block(NamedTuple):
    """Part of a document, as Markdown."""

    markdown: str
    heading: str = ""  # its text, for the navigation
    folded: str = ""  # the summary line of a collapsed block
    picture: str = ""  # the name of its PNG file, without extension
    png: bytes = b""


def title(text, lead):
    return Block(f"# {escape(text)}\n\n*{escape(lead)}*")


def heading(text):
    return Block(f"## {escape(text)}", heading=text)


def paragraph(text):
    return Block(_begun(text))


def items(texts):
    return Block("\n".join(f"- {_begun(text)}" for text in texts))


def abstract(texts):
    """Paragraphs set apart from the rest, to be read first."""
    return Block("\n>\n".join(f"> {_begun(text)}" for text in texts))


def code(text):
    fence = max(["``", *re.findall("`+", text)], key=len) + "`"
    return Block(f"{fence}\n{text}\n{fence}")


def picture(name, png, caption):
    return Block(f"![{name.replace('_', ' ')}]({name}.png)\n\n*{escape(caption)}*", picture=name, png=png)


def table(rows, caption="", folded=""):
    """Rows [{column: text}], all with the same columns. Columns whose cells all begin like numbers are aligned right."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    sides = [
        "---:" if all(map(NUMBER.fullmatch, cells)) and any(cell not in ("-", "") for cell in cells) else "---"
        for cells in columns.values()
    ]
    line = lambda cells: f"| {' | '.join(cells)} |"
    written = [[LOUD.get(cell) or escape(cell).replace("|", r"\|") for cell in row.values()] for row in rows]
    head = [escape(name).replace("|", r"\|") for name in columns]
    lines = "\n".join([line(head), line(sides), *map(line, written)])
    return Block(lines + (f"\n\n*{escape(caption)}*" if caption else ""), folded=folded)


# -- escaping


def escape(text):
    """A text on one line, with everything escaped that GitHub's Markdown, or HTML in it, would read as markup.

    The rest stays as it is: "log_snr", "8.84", "train[:90%]".
    """
    text = " ".join(str(text).split())
    markup = r"\\(?=[^\w\s]|$)|[`*~$]|(?<!\w)_+|_+(?!\w)|\](?=[(:\[])"
    text = re.sub(markup, lambda found: "".join(f"\\{character}" for character in found[0]), text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


def _begun(text):
    """`escape` for the beginning of a block, where a text could start a list, a heading or a quotation."""
    text = re.sub(r"^(?=>|[-+](\s|$)|-+$|#{1,6}(\s|$)|\[[ xX]\]\s)", r"\\", escape(text))
    return re.sub(r"^(\d{1,9})(?=[.)](\s|$))", r"\1\\", text)


# -- on disk


def write(blocks, folder, name):
    """Writes `name`.html, `name`.md and the folder `name`_pictures; each file whole or not at all. The first block: the title."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for block in blocks:
        text = block.markdown
        if block.picture:
            (pictures := folder / f"{name}_pictures").mkdir(exist_ok=True)
            _write(pictures / f"{block.picture}.png", block.png)
            text = text.replace("](", f"]({pictures.name}/", 1)
        parts.append(f"<details><summary>{html.escape(block.folded)}</summary>\n\n{text}\n\n</details>" if block.folded else text)
    _write(folder / f"{name}.md", ("\n\n".join(parts) + "\n").encode())
    _write(folder / f"{name}.html", page(blocks).encode())


def page(blocks):
    """The HTML page of blocks, the first of which is a title."""
    pictures = {f"{block.picture}.png": block.png for block in blocks if block.picture}
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])

    def image(renderer, tokens, index, options, env):
        png = pictures[tokens[index].attrs["src"]]
        width = round(PIXEL * int.from_bytes(png[16:20]))  # of the PNG's header
        data = base64.b64encode(png).decode()
        return f'<img alt="{html.escape(tokens[index].content)}" width="{width}" src="data:image/png;base64,{data}">'

    renderer.add_render_rule("image", image)

    def rendered(block):
        text = renderer.render(block.markdown)
        if block.heading:
            return text.replace("<h2>", f'<h2 id="{_anchor(block.heading)}">', 1)
        return f"<details><summary>{html.escape(block.folded)}</summary>\n{text}</details>\n" if block.folded else text

    first, *rest = map(rendered, blocks)
    places = "\n".join(
        f'<a href="#{_anchor(block.heading)}">{html.escape(block.heading)}</a>' for block in blocks if block.heading
    )
    name = first.partition("</h1>")[0].removeprefix("<h1>")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{first}<nav>{places}</nav>\n{''.join(rest)}</body>\n</html>\n"
    )


def _anchor(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write(path, content):
    with replacing(path) as file:
        file.write(content)
