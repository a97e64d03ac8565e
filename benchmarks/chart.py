"""Results of benchmarks.speed as a table in Markdown and as bars in SVG."""

from __future__ import annotations

import html
import itertools

STYLE = """<style>
rect { fill: #1f77b4 } .background { fill: white }
.meta, .baseline { fill: #e6862b } .compiled { fill: #f2b77c } .huggingface { fill: #8a8a8a }
</style>"""
BAR, GAP, LEFT, WIDTH = 18, 4, 150, 560  # px: height of a bar, space between bars, x of the bars, longest bar


def markdown(results: list[dict]) -> str:
    """A row per case; the last column is its time divided by that of the first row of its group."""
    lines = [
        '| | side | s | min to max | TFLOP/s | of its ceiling | GiB | times the first |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for title, group in groups(results):
        for row in group:
            if 'failed' in row:
                lines.append(f'| {title} | {row["side"]} | {row["failed"]} | | | | | |')
                continue
            rate = row['flops'] / row['seconds'] if 'flops' in row else None
            ratio = time_ratio(row, group)
            cells = [
                f'{row["seconds"]:.4g}',
                f'{row["min"]:.4g} to {row["max"]:.4g}' if 'min' in row else '',
                f'{rate / 1e12:.3g}' if rate else '',
                f'{rate / row["ceiling"]:.0%} of {row["ceiling"] / 1e12:.3g}' if rate else '',
                f'{row["gib"]:.2f}' if 'gib' in row else '',
                f'{ratio:.2f}' if ratio else '',
            ]
            lines.append(f'| {title} | {row["side"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def svg(results: list[dict]) -> str:
    """Bars of seconds; the bars of a group have the same scale."""
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
                ratio = time_ratio(row, group)
                label = f'{row["seconds"]:.3g} s' + (f', {ratio:.2f} x {group[0]["side"]}' if ratio else '')
                parts.append(text(LEFT + width + 6, y + 13, label))
            y += BAR + GAP
        y += 12
    total = LEFT + WIDTH + 190
    header = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{y}" font-family="sans-serif" font-size="13">'
    )
    background = f'<rect width="{total}" height="{y}" class="background"/>'
    return '\n'.join([header, STYLE, background, *parts, '</svg>']) + '\n'


def groups(results: list[dict]):
    """(title, rows) of consecutive results with the same title."""
    return [(title, list(rows)) for title, rows in itertools.groupby(results, lambda row: row['title'])]


def time_ratio(row: dict, group: list[dict]) -> float | None:
    """The time of a row divided by that of the first row of its group; None for the first row, or if that failed."""
    return None if row is group[0] or 'failed' in group[0] else row['seconds'] / group[0]['seconds']


def text(x: float, y: float, words: str, attributes: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y}" {attributes}>{html.escape(words)}</text>'
