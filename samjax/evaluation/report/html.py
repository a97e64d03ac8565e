"""The report of an evaluation as an HTML file that needs no other file, and its tables as Markdown."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

from samjax.errors import SamjaxError
from samjax.storage.atomic import write_text

SHORT = 8  # entries of a nested dict that are shown without a click
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # browsers load nothing from network or disk

Cell = str | float | int | None


class Table(NamedTuple):
    """Rows of text and numbers; columns with numbers are aligned right."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ''


class Figure(NamedTuple):
    """A PNG file as wide as the report; a click enlarges it."""

    title: str
    file: Path
    note: str = ''


class Gallery(NamedTuple):
    """Captions and PNG files in a grid; a click enlarges an image."""

    title: str
    files: list[tuple[str, Path]]


class Facts(NamedTuple):
    """Names and values; dicts that hold dicts are shown as JSON."""

    title: str
    entries: dict[str, object]


def write(path: Path, title: str, subtitle: str, sections: Sequence[Table | Figure | Gallery | Facts]) -> None:
    """Writes the report.

    Raises:
        SamjaxError: the file of a figure does not exist.
    """
    write_text(path, _document(title, subtitle, sections))


def markdown(tables: Sequence[Table]) -> str:
    """Each table under its title, with aligned columns."""
    return '\n'.join(_markdown_table(table) for table in tables)


# ---- HTML ------------------------------------------------------------------------------------------


def _document(title: str, subtitle: str, sections: Sequence[Table | Figure | Gallery | Facts]) -> str:
    links = [f'<li><a href="#section-{i}">{escape(section.title)}</a></li>' for i, section in enumerate(sections, 1)]
    contents = ['<nav aria-label="Contents">', '<ol>', *links, '</ol>', '</nav>'] if len(links) > 1 else []
    lines = [
        '<!DOCTYPE html>',
        '<html lang="en">',
        '<head>',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<link rel="icon" href="data:,">',
        f'<title>{escape(title)}</title>',
        f'<style>{STYLE}</style>',
        '</head>',
        '<body>',
        '<header>',
        f'<h1>{escape(title)}</h1>',
        f'<p>{escape(subtitle)}</p>',
        '</header>',
        *contents,
        '<main>',
        *(_section(i, section) for i, section in enumerate(sections, 1)),
        '</main>',
        '</body>',
        '</html>',
    ]
    return '\n'.join(lines) + '\n'


def _section(number: int, section: Table | Figure | Gallery | Facts) -> str:
    note = ''
    match section:
        case Table(note=note):
            body = _table(section)
        case Figure(note=note):
            body = f'<div class="figure">{_image(section.file, "", section.title)}</div>'
        case Gallery():
            body = '\n'.join(_image(file, caption, caption) for caption, file in section.files)
            body = f'<div class="gallery">\n{body}\n</div>'
        case Facts():
            body = _facts(section.entries)
    heading = f'<h2>{escape(section.title)}</h2>'
    if note:
        heading += f'\n<p class="note">{escape(note)}</p>'
    return f'<section id="section-{number}">\n{heading}\n{body}\n</section>'


def _table(table: Table) -> str:
    if not table.rows:
        return '<p class="note">None.</p>'
    styles = [' class="number"' if numeric else '' for numeric in _numeric_columns(table)]
    head = [f'<th scope="col"{s}>{escape(title)}</th>' for title, s in zip(table.header, styles, strict=True)]
    rows = []
    for first, *rest in table.rows:
        cells = [f'<td{s}>{escape(_format(cell))}</td>' for cell, s in zip(rest, styles[1:], strict=True)]
        rows.append(f'<tr><th scope="row"{styles[0]}>{escape(_format(first))}</th>{"".join(cells)}</tr>')
    # An element that scrolls must be reachable by keyboard.
    return '\n'.join(
        [
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}">',
            '<table>',
            f'<thead><tr>{"".join(head)}</tr></thead>',
            '<tbody>',
            *rows,
            '</tbody>',
            '</table>',
            '</div>',
        ]
    )


def _image(file: Path, caption: str, alt: str) -> str:
    """An image that fills the window after a click; it is in the file only once."""
    if not file.is_file():
        raise SamjaxError(f'the image {file} does not exist: run the evaluation again')
    data = base64.b64encode(file.read_bytes()).decode('ascii')
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    text = f'<span>{escape(caption)}</span>' if caption else ''
    return f'<details class="image"><summary>{image}{text}</summary></details>'


def _facts(entries: dict[str, object]) -> str:
    rows = [f'<div><dt>{escape(str(name))}</dt><dd>{_fact(value)}</dd></div>' for name, value in entries.items()]
    return '\n'.join(['<dl>', *rows, '</dl>'])


def _fact(value: object) -> str:
    if isinstance(value, dict) and value:
        if len(value) <= SHORT and not any(isinstance(entry, dict) for entry in value.values()):
            return _facts(value)
        count = f'{len(value)} {"entry" if len(value) == 1 else "entries"}'
        return f'<details class="json"><summary>{count}</summary><pre>{escape(_json(value))}</pre></details>'
    if value is None or value == '':
        return '–'
    is_text = isinstance(value, (str, Path))
    return escape(str(value) if is_text else json.dumps(value, ensure_ascii=False, default=str))


def _json(value: dict) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    # Lists of numbers go on a line of their own; strings in JSON have no line breaks and are not changed.
    return re.sub(r'\[\n[^]["{}]*]', lambda match: f'[{" ".join(match[0][1:-1].split())}]', text)


# ---- Markdown --------------------------------------------------------------------------------------


def _markdown_table(table: Table) -> str:
    lines = [[_markdown_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    numeric = _numeric_columns(table)
    rule = ['-' * (width - 1) + (':' if right else '-') for width, right in zip(widths, numeric, strict=True)]
    padded = [
        [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numeric, strict=True)]
        for line in lines
    ]
    rows = [f'| {" | ".join(line)} |' for line in (padded[0], rule, *padded[1:])]
    note = ['', table.note] if table.note else []
    return '\n'.join([f'### {table.title}', '', *rows, *note, ''])


def _markdown_cell(cell: Cell) -> str:
    return ' '.join(_format(cell, dash='-').replace('|', '\\|').split())


# ---- cells -----------------------------------------------------------------------------------------


def _numeric_columns(table: Table) -> list[bool]:
    columns = zip(table.header, *table.rows, strict=True)
    return [any(isinstance(cell, Real) for cell in cells) for _, *cells in columns]


def _format(cell: Cell, dash: str = '–') -> str:
    if isinstance(cell, Integral):
        return f'{cell:,}'
    if isinstance(cell, Real):
        return f'{cell:.3f}' if math.isfinite(cell) else dash
    return dash if cell is None else cell


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --line: #dde1e6; --ink: #1c2127; --quiet: #5c6670; --link: #1a5fb4;
  --plate: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --raised: #1d2126; --line: #343a42; --ink: #e4e7eb; --quiet: #9aa4af; --link: #7fb2f0;
    --plate: #e6e6e6;
  }
  img { filter: brightness(0.9); } /* white as --plate */
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 0.75rem; font-size: 1.25rem; line-height: 1.3; overflow-wrap: anywhere; }
header p { margin: 0.5rem 0 0; color: var(--quiet); overflow-wrap: anywhere; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav { margin: 1.75rem 0 0; padding: 0.9rem 1.25rem; background: var(--raised); border-radius: 0.5rem; }
nav ol { margin: 0; padding-left: 1.75rem; columns: 17rem; column-gap: 2.5rem; }
nav li { break-inside: avoid; padding-left: 0.25rem; }
nav li::marker { color: var(--quiet); font-variant-numeric: tabular-nums; }
section { margin-top: 3rem; scroll-margin-top: 1.5rem; }
.note { margin: -0.4rem 0 0.9rem; max-width: 46rem; color: var(--quiet); font-size: 0.925rem; }

.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 0.5rem; }
table { width: 100%; border-collapse: separate; border-spacing: 0; font-size: 0.9rem; line-height: 1.4; }
th, td { padding: 0.42rem 0.8rem; text-align: left; vertical-align: baseline; }
thead th { vertical-align: bottom; background: var(--raised); color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 500; }
tbody th, tbody td { border-top: 1px solid var(--line); }
tbody tr:hover > * { background: var(--raised); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody .number { white-space: nowrap; }
td:not(.number) { min-width: 9rem; overflow-wrap: anywhere; }
tr > :first-child { position: sticky; left: 0; min-width: 8rem; background: var(--paper); }
thead tr > :first-child { background: var(--raised); }

summary { cursor: pointer; }
.image > summary { cursor: zoom-in; list-style: none; }
.image > summary::-webkit-details-marker { display: none; }
.image img { display: block; background: #ffffff; }
.figure img { max-width: 100%; margin: 0 auto; }
.figure summary, .gallery img { border: 1px solid var(--line); border-radius: 0.5rem; }
.figure summary { padding: 0.75rem; background: var(--plate); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.25rem; }
.gallery img { width: 100%; aspect-ratio: 3 / 2; object-fit: contain; padding: 0.25rem; }
.gallery span { display: block; margin-top: 0.35rem; }
.image span { color: var(--quiet); font-size: 0.875rem; line-height: 1.4; overflow-wrap: anywhere; }

@media screen {
  .image[open] > summary {
    position: fixed; inset: 0; z-index: 1; overflow: auto; padding: 3rem 1.5rem 1.5rem;
    border: 0; border-radius: 0; background: var(--paper); cursor: zoom-out;
  }
  .image[open] img {
    width: auto; max-width: 100%; min-width: min(100%, 30rem); height: auto; aspect-ratio: auto;
    max-height: none; margin: 0 auto;
  }
  .image[open] span { text-align: center; }
  .image[open] > summary::after {
    content: "\\2715"; position: fixed; top: 0.6rem; right: 1.25rem; color: var(--quiet); font-size: 1.4rem;
  }
  body:has(.image[open]) { overflow: hidden; }
}

dl { margin: 0; }
dl > div { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 0 1rem; padding: 0.4rem 0; }
section > dl { border-bottom: 1px solid var(--line); }
section > dl > div { border-top: 1px solid var(--line); }
dl dl > div { padding: 0.1rem 0; }
dl dl > div:first-child { padding-top: 0; }
dt { color: var(--quiet); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
.json > summary { color: var(--link); }
pre {
  margin: 0.5rem 0; padding: 0.8rem 1rem; overflow-x: auto; background: var(--raised); border-radius: 0.5rem;
  font: 0.8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}

@media screen and (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  nav { padding: 0.75rem 0.75rem; }
  section { margin-top: 2.25rem; }
  th, td { padding: 0.4rem 0.6rem; }
  tr > :first-child { max-width: 9rem; border-right: 1px solid var(--line); }
  .figure summary { padding: 0.25rem; }
  .image[open] img { max-width: none; }
  .gallery img { aspect-ratio: auto; max-height: 24rem; }
  section > dl > div { grid-template-columns: minmax(0, 1fr); }
  dl dl { padding-left: 1rem; }
  dl dl > div { grid-template-columns: 8rem minmax(0, 1fr); }
}
@media print {
  :root { --paper: #ffffff; --raised: #f3f4f6; --line: #c8cdd3; --ink: #000000; --quiet: #444444; --link: #000000; }
  .figure summary { background: none; }
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  img { filter: none; }
  section { margin-top: 1.75rem; }
  h2, .note { break-after: avoid; }
  section:has(> .figure), tr, .image, dl > div:not(:has(details)) { break-inside: avoid; }
  .wide { overflow: visible; border: 0; }
  table { font-size: 8pt; }
  th, td { padding: 0.2rem 0.4rem; }
  tr > :first-child { position: static; }
  .figure summary { padding: 0; border: 0; }
  .gallery { grid-template-columns: repeat(3, 1fr); gap: 0.75rem; }
  .json::details-content { content-visibility: visible; block-size: auto; }
  pre { white-space: pre-wrap; font-size: 7.5pt; }
}
"""
