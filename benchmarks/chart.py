"""Results of benchmarks.speed as a table in Markdown and as bars in SVG."""

from __future__ import annotations

import html
import itertools

COLOURS = {
    'ours': '#1f77b4',
    'original': '#e6862b',
    'compiled': '#f2b77c',
    'huggingface': '#8a8a8a',
    'cold': '#7fb3d8',
    'cached': '#1f77b4',
}
BAR, GAP, LEFT, WIDTH = 18, 4, 110, 560  # px; of the bars, beside the names of the sides


def markdown(results: list[dict]) -> str:
    """A row per case; `times` is how many times as long as ours it takes."""
    lines = [
        '| | side | s | least to greatest | TFLOP/s | of its ceiling | GiB | times ours |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for title, group in groups(results):
        for row in group:
            if 'failed' in row:
                lines.append(f'| {title} | {row["side"]} | {row["failed"]} | | | | | |')
                continue
            cells = ['', '', '', '']
            if 'flops' in row:
                rate = row['flops'] / row['seconds']
                cells = [
                    f'{row["least"]:.4g} to {row["greatest"]:.4g}',
                    f'{rate / 1e12:.3g}',
                    f'{rate / row["ceiling"]:.0%} of {row["ceiling"] / 1e12:.3g}',
                    f'{row["gib"]:.2f}',
                ]
            ratio = times_ours(row, group)
            cells = [f'{row["seconds"]:.4g}', *cells, f'{ratio:.2f}' if ratio else '']
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
                parts.append(
                    f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[row["side"]]}"/>'
                )
                ratio = times_ours(row, group)
                said = f'{row["seconds"]:.3g} s' + (f', {ratio:.2f} x ours' if ratio else '')
                parts.append(text(LEFT + width + 6, y + 13, said))
            y += BAR + GAP
        y += 12
    whole = LEFT + WIDTH + 150
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{y}" font-family="sans-serif" font-size="13">'
    )
    return '\n'.join([head, f'<rect width="{whole}" height="{y}" fill="white"/>', *parts, '</svg>']) + '\n'


def groups(results: list[dict]):
    """(title, its rows) in the order of the results."""
    return [(title, list(rows)) for title, rows in itertools.groupby(results, lambda row: row['title'])]


def times_ours(row: dict, group: list[dict]) -> float | None:
    """How many times as long as ours; None for ours and where ours is missing."""
    reference = [other for other in group if other['side'] == 'ours' and 'failed' not in other]
    return row['seconds'] / reference[0]['seconds'] if reference and row['side'] != 'ours' else None


def text(x: float, y: float, words: str, more: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y}" {more}>{html.escape(words)}</text>'
