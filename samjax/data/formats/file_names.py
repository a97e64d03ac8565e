"""Names of files that mean the same: other systems and programs spell them in other ways.

A name is tried as it is written, percent-decoded (`a%20b.png`), and in the Unicode forms NFC and NFD, in which macOS
and other systems write accents.  Another letter case or suffix is never assumed, only pointed out.
"""

from __future__ import annotations

import collections
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from samjax.images.open import SUFFIXES
from samjax.storage.walk import list_files

MAX_LENGTH = 4096  # characters of a path, as in Linux; an image embedded in JSON has more
URL = re.compile(r'\w[\w+.-]+://[^/]*/')


class Located(NamedTuple):
    """What a name means."""

    files: list[str]  # paths: none if it is missing, several if it may be any of them
    similar: str = ''  # a file that it may be, and how it differs, such as 'A.png is there, with other letter case'

    def why_missing(self, name: str, searched: str) -> str:
        """Why there is not a single file.  searched: where, such as 'below the folder of the JSON'."""
        if self.files:
            return f'{escaped(name)} may be {" or ".join(map(escaped, self.files[:2]))}'
        hint = f'; {self.similar}: rename it, or correct the name' if self.similar else ''
        return f'{escaped(name)} is not {searched}{hint}'


def as_path(name) -> str | None:
    """A file name as a POSIX path: from Windows, or a URL, of which the last two parts are kept; None if it is none."""
    if not isinstance(name, str) or len(name) > MAX_LENGTH:
        return None
    if URL.match(name):
        path = urllib.parse.unquote(re.sub(r'[?#].*', '', URL.sub('', name, count=1)), errors='surrogateescape')
        name = '/'.join(path.split('/')[-2:])
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a character
        return None
    path = PurePosixPath(name.replace('\\', '/'))
    return None if path.name in ('', '..') else str(path)


def unicode_form(name: str) -> str:
    """The same for names that look the same: é is two characters where macOS wrote the name, else one."""
    return name if name.isascii() else unicodedata.normalize('NFC', name)


def caseless(name: str) -> str:
    """The same for names that differ in letter case or Unicode form."""
    return unicode_form(unicode_form(name).casefold())


def unique_keys(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """The name with each key, for keys that a single name has."""
    names_with = collections.defaultdict(list)
    for name in names:
        names_with[key(name)].append(name)
    return {key: names[0] for key, names in names_with.items() if len(names) == 1}


def storable(name: str) -> str:
    """A name for records and reports: bytes that are not UTF-8 become \\udc80 .. \\udcff in ASCII."""
    return name.encode('utf-8', 'backslashreplace').decode()


def escaped(name: str) -> str:
    """For messages, in ASCII: names that look alike can be told apart."""
    return name.encode('ascii', 'backslashreplace').decode()


def spellings(name: str) -> list[str]:
    """Ways to write a path, as it is first; one that begins with / may begin at the folder of the data set instead."""
    if name.isascii() and '%' not in name and not name.startswith('/'):
        return [name]
    decoded = urllib.parse.unquote(name, errors='surrogateescape').replace('\\', '/')
    texts = [name, decoded, name.lstrip('/'), decoded.lstrip('/')]
    return list(dict.fromkeys(form for text in texts for form in (text, unicode_form(text), _nfd(text))))


def first_file(name: str, folders: Sequence[str | Path], taken: Collection[str] = ()) -> str | None:
    """The file to which a path leads from one of the folders: by its first spelling, then in the first folder.

    taken: paths that it does not mean.
    """
    for spelling in spellings(name):
        for folder in folders:
            file = os.path.join(folder, spelling)
            if file not in taken and os.path.isfile(file):
                return file
    return None


def locate(
    names: Iterable[str], folders: Sequence[str | Path], searched: Sequence[Path] = (), taken: Collection[str] = ()
) -> dict[str, Located]:
    """The files that paths may mean: where they lead from the first possible of the `folders`, else see `search`.

    searched: folders to be searched, one after the other, for what is still missing; taken: paths that none means.
    """
    located = {}
    for name in names:
        file = first_file(name, folders, taken)
        located[name] = Located([] if file is None else [file])
    for root in searched:
        located |= search(located, root, taken)
    return located


def search(located: Mapping[str, Located], root: Path, taken: Collection[str] = ()) -> dict[str, Located]:
    """The names without files, located below `root`: files that end in the whole name, else in its unique last part.

    Folders that cannot be read are left out.
    """
    missing = [name for name, (files, _) in located.items() if not files]
    if not missing:
        return {}
    ends = {end: [] for name in missing for spelling in spellings(name) for end in (_end(spelling), _last(spelling))}
    stems = {stem: {} for name in missing for stem in _stems(name)}
    depth = max(end.count('/') for end in ends) + 1
    for file in list_files(root, lambda name: _stem(name) in stems, on_error=lambda error: None):
        if file in taken:
            continue
        parts = unicode_form(file).rsplit('/', depth)[1:]
        for start in range(len(parts)):
            if (end := '/'.join(parts[start:])) in ends:
                ends[end].append(file)
        _add_image(file, stems)
    last_parts: dict[str, int] = {}
    for name in located:
        last_parts[_last(name)] = last_parts.get(_last(name), 0) + 1
    new = {}
    for name in missing:
        whole = next(filter(None, (ends[_end(spelling)] for spelling in spellings(name))), [])
        unique = last_parts[_last(name)] == 1
        last = next(filter(None, (ends[_last(spelling)] for spelling in spellings(name) if unique)), [])
        files = whole or last
        literal = [file for file in files if os.path.basename(file) == os.path.basename(name)]
        similar = '' if files else located[name].similar or _similar(name, stems, root)
        new[name] = Located(literal or files, similar)
    return new


def similar_file(name: str, folder: str | Path) -> str:
    """As `Located.similar`, for a path that leads nowhere from `folder`: a file where it should be, or empty."""
    parent = Path(folder, name).parent
    try:
        files = sorted(os.path.join(parent, file) for file in os.listdir(parent))
    except (OSError, ValueError):
        return ''
    stems = {stem: {} for stem in _stems(name)}
    for file in files:
        _add_image(file, stems)
    return _similar(name, stems, folder)


_Stems = dict[str, dict[str, str]]  # `_stem` of names -> image files with it, the first of each name


def _add_image(file: str, stems: _Stems) -> None:
    last_part = os.path.basename(file)
    if last_part.lower().endswith(SUFFIXES) and (stem := _stem(last_part)) in stems:
        stems[stem].setdefault(last_part, file)


def _similar(name: str, stems: _Stems, root: str | Path) -> str:
    differences = {}
    for stem in _stems(name):
        for file in stems[stem].values():
            differences.setdefault(_difference(name, file), file)
    if not differences:
        return ''
    difference = min(differences, key=len)
    return f'{escaped(os.path.relpath(differences[difference], root))} is there, {difference}'


def _difference(name: str, file: str) -> str:
    """How a file with the same `_stem` differs."""
    last, written = _last(file), [_last(spelling) for spelling in spellings(name)]
    if last in written:
        return 'in another folder'
    if last.casefold() in map(str.casefold, written):
        return 'with other letter case'
    stems = [os.path.splitext(spelling)[0] for spelling in written]
    return 'with another suffix' if os.path.splitext(last)[0] in stems else 'with other letter case and another suffix'


def _nfd(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize('NFD', text)


def _end(path: str) -> str:
    """What the path of a file must end in, in NFC."""
    return unicode_form('/'.join(part for part in path.split('/') if part not in ('', '.', '..')))


def _last(path: str) -> str:
    return unicode_form(os.path.basename(path))


def _stem(name: str) -> str:
    """A file name without what may differ between similar ones."""
    return caseless(os.path.splitext(name)[0])


def _stems(path: str) -> list[str]:
    return list(dict.fromkeys(_stem(os.path.basename(spelling)) for spelling in spellings(path)))
