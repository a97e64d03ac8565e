"""Names of files that mean the same file: in another Unicode form, or in another letter case."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable


def unicode_form(name: str) -> str:
    """The same for names that look the same: é is two characters where macOS wrote the name, else one."""
    return unicodedata.normalize('NFC', name)


def caseless(name: str) -> str:
    """The same for names that differ in letter case or Unicode form."""
    return unicode_form(unicode_form(name).casefold())


def unique_keys(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """The name with each key, for keys that a single name has."""
    names_with = defaultdict(list)
    for name in names:
        names_with[key(name)].append(name)
    return {key: names[0] for key, names in names_with.items() if len(names) == 1}
