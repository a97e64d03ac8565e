"""Results of benchmarks.speed as a table in Markdown and as bars in SVG."""

from __future__ import annotations

import html
import itertools

STYLE = """<style>
rect { fill: #1f77b4 } .background { fill: white }
.original, .straightforward { fill: #e6862b } .compiled { fill: #f2b77c } .huggingface { fill: #8a8a8a }
</style>"""
BAR, GAP, LEFT, WIDTH = 18, 4, 130, 560  # px; of the bars, beside the names of the sides


def markdown(results: list[dict]) -> str:
    """A row per case; the last column is how many times as long it takes as the first row of its group."""
    lines = [
        '| | side | s | least to greatest | TFLOP/s | of its ceiling | GiB | times the first |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for title, group in groups(results):
        for row in group:
            if 'failed' in row:
                lines.append(f'| {title} | {row["side"]} | {row["failed"]} | | | | | |')
                continue
            rate = row['flops'] / row['seconds'] if 'flops' in row else None
            ratio = times_the_first(row, group)
            cells = [
                f'{row["seconds"]:.4g}',
                f'{row["least"]:.4g} to {row["greatest"]:.4g}' if 'least' in row else '',
                f'{rate / 1e12:.3g}' if rate else '',
                f'{rate / row["ceiling"]:.0%} of {row["ceiling"] / 1e12:.3g}' if rate else '',
                f'{row["gib"]:.2f}' if 'gib' in row else '',
                f'{ratio:.2f}' if ratio else '',
            ]
            lines.append(f'| {title} | {row["side"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def svg(results: list[dict]) -> str:
    """Bars of seconds, those of a group to one scale."""
    parts, y = [], 10
    for title, group in groups(results):
        parts.append(text(10, y + 14, title, 'font-weight="bold"'))
        y += 22
        longest = max((row['seconds'] for row in group if 'failed' not in row), default=1)
        for row in group:
            parts.append(text(LEFT - 8, y + 13, row['side'], 'text-anchor="end"'))
            if 'failed' in row:
                parts.append(text(LEFT, y + 13, row['failed'], 'fill="#888"'))
            else:
                width = WIDTH * row['seconds'] / longest
                parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" class="{row["side"]}"/>')
                ratio = times_the_first(row, group)
                said = f'{row["seconds"]:.3g} s' + (f', {ratio:.2f} x {group[0]["side"]}' if ratio else '')
                parts.append(text(LEFT + width + 6, y + 13, said))
            y += BAR + GAP
        y += 12
    whole = LEFT + WIDTH + 190
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{y}" font-family="sans-serif" font-size="13">'
    )
    background = f'<rect width="{whole}" height="{y}" class="background"/>'
    return '\n'.join([head, STYLE, background, *parts, '</svg>']) + '\n'


def groups(results: list[dict]):
    """(title, its rows) in the order of the results."""
    return [(title, list(rows)) for title, rows in itertools.groupby(results, lambda row: row['title'])]


def times_the_first(row: dict, group: list[dict]) -> float | None:
    """How many times as long as the first of its group; None for that one and where that one failed."""
    return None if row is group[0] or 'failed' in group[0] else row['seconds'] / group[0]['seconds']


def text(x: float, y: float, words: str, more: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y}" {more}>{html.escape(words)}</text>'
