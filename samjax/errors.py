"""Errors that the commands show as one line instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MAX_REASON = 300  # characters


class SamjaxError(ValueError):
    """Something the user can fix; the message is one sentence that names the thing and the remedy."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class InvalidExample(Exception):
    """Why an image, or its annotations, cannot be used.

    cause: a short phrase by which such images are counted, such as 'unreadable image'; detail: what is wrong here.
    """

    def __init__(self, cause: str, detail: str):
        detail = printable(detail)
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


def printable(text: str) -> str:
    """The text on one line that any terminal shows, the same in each run: damaged files put anything into messages.

    Characters that cannot be printed are escaped; the addresses of Python's objects are left out.
    """
    text = re.sub(r' at 0x[0-9a-f]+(?=>)', '', ' '.join(re.split(r'\s*[\r\n]\s*', text)))
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def check_option(name: str, value: object, is_possible: Callable[[Any], bool], possible: str) -> None:
    """Raises SamjaxError, which says what is `possible`, unless `is_possible(value)`; a TypeError there means no."""
    try:
        if is_possible(value):
            return
    except TypeError:
        pass
    raise SamjaxError(f'{name} is {value!r}: set it to {possible}')


def is_whole(value: object) -> bool:
    """Whether it is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return ' '.join(str(error).split())


def reason(error: Exception) -> str:
    """What an error of a library says, shortened: some repeat the content of a file; its type if it says nothing."""
    text = str(error) or type(error).__name__
    return text if len(text) <= MAX_REASON else f'{text[:MAX_REASON]} ..'
