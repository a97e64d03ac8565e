"""Progress of long work on stderr, and durations in words."""

from __future__ import annotations

import sys
import time


class Progress:
    """One line on stderr: count, rate and time left.

    In a terminal the line is rewritten every second; a log file gets a new line every minute.  `interval` is that time
    in s.  A context manager: leaving it ends the line.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = 'images', *, count: int = 0, fraction: float = 0.0
    ):
        """total: None if it is not known; count, fraction: what of the work was done before."""
        self.title, self.total, self.unit = title, total, unit
        self._first_count, self._first_fraction = count, fraction
        self._is_terminal = sys.stderr.isatty()
        self.interval = 1.0 if self._is_terminal else 60.0
        self._start = self._shown = time.monotonic()
        self._line_is_open = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._line_is_open:
            print(file=sys.stderr)

    def update(self, count: int, fraction: float | None = None) -> None:
        """Shows the state if the interval is over or everything is done.

        fraction: of the work, needed if the total is not known.
        """
        now = time.monotonic()
        if now - self._shown < self.interval and count != self.total:
            return
        self._shown = now
        line = self.line(count, fraction)
        sys.stderr.write(f'\r{line}\x1b[K' if self._is_terminal else f'{line}\n')
        sys.stderr.flush()
        self._line_is_open = self._is_terminal

    def line(self, count: int, fraction: float | None = None) -> str:
        """Such as 'embeddings: 12/40 images, 3.1 images/s, 9 s left' or 'preparing x: 12 images, .., 30%, 9 s left'."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (count - self._first_count) / seconds
        parts = [f'{count}{"" if self.total is None else f"/{self.total}"} {self.unit}']
        parts.append(f'{rate:.{1 if rate >= 10 else 2}f} {self.unit}/s')
        if self.total is None:
            parts.append(f'{fraction:.0%}')
        elif fraction is None:
            fraction = count / max(self.total, 1)
        if fraction > self._first_fraction:
            left = (1 - fraction) * seconds / (fraction - self._first_fraction)
            parts.append(f'{format_duration(left)} left')
        return f'{self.title}: {", ".join(parts)}'


def format_duration(seconds: float) -> str:
    """3723 s -> '1 h 02 min'; 62 s -> '1 min 02 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes_left:02d} min'
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'
