"""Pairs of an image and its JSON, wherever they lie: in folders at any depth or in tar shards."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from samjax.errors import SamjaxError

IMAGE = ('.jpg', '.jpeg', '.png')
JSON = ('.json',)
TAR = ('.tar',)


class Part(NamedTuple):
    """Some bytes of a file: all of it, or one member of a tar shard."""

    path: str
    offset: int  # bytes
    size: int  # bytes

    def read(self) -> bytes:
        with open(self.path, 'rb') as file:
            file.seek(self.offset)
            return file.read(self.size)


class Pair(NamedTuple):
    """What shares one stem: an image and its JSON if all is well."""

    name: str  # path without suffix, below the folder or inside the tar
    place: str  # the same for people, with the tar's name
    images: list[Part]
    jsons: list[Part]


class BrokenTar(NamedTuple):
    """A shard that ends before its last member, or is no tar file; what can be found is a `Pair`."""

    place: str
    reason: str


def digest(path: Path) -> str:
    """Stable fingerprint of the path and of the name, size and time of every file below it.

    Raises SamjaxError if the path does not exist or holds neither images nor tar shards.
    """
    found = hashlib.sha256(os.fsencode(path.resolve()))
    usable = False
    for file in list_files(path):
        stat = os.stat(file)
        found.update(os.fsencode(f'\0{os.path.relpath(file, path)}\0{stat.st_size}'))
        found.update(str(stat.st_mtime_ns).encode())
        usable |= _suffix(file) in IMAGE + TAR
    if not usable:
        raise SamjaxError(
            f'{path} holds no images: data.path must name a folder with JPEG or PNG files and a JSON '
            'of the same name beside each, or with uncompressed .tar shards of such files'
        )
    return found.hexdigest()[:32]


def find_pairs(path: Path) -> Iterator[Pair | BrokenTar]:
    """Every stem below `path` in the order of names; reads no image, only lists and tar headers."""
    folder = path if path.is_dir() else path.parent
    loose: dict[str, list[str]] = {}
    for file in list_files(path):
        place = Path(file).relative_to(folder).as_posix()
        if _suffix(file) in TAR:
            yield from _tar_pairs(file, place)
        else:
            loose.setdefault(_stem(place), []).append(file)
    for stem, files in loose.items():
        parts = [Part(file, 0, os.path.getsize(file)) for file in files]
        yield _pair(stem, stem, list(zip(files, parts, strict=True)))


def list_files(path: Path) -> Iterator[str]:
    """Images, JSON files and tar shards below `path` in a fixed order, hidden ones left out.

    Raises SamjaxError if the path does not exist.
    """
    if not path.exists():
        raise SamjaxError(f"{path} does not exist: data.path and data.eval_path must name a folder, or be 'scenes'")
    if path.is_file():
        yield from [str(path)] if _suffix(path) in TAR else []
        return
    seen = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if s[0] != '.')
        if real in seen:  # a link back up, or a second link to the same folder
            continue
        seen.add(real)
        for file in sorted(files):
            if file[0] != '.' and _suffix(file) in IMAGE + JSON + TAR:
                yield os.path.join(folder, file)


def _tar_pairs(file: str, place: str) -> Iterator[Pair | BrokenTar]:
    members: dict[str, list[tuple[str, Part]]] = {}
    try:
        with tarfile.open(file, 'r:') as tar:
            for member in tar:
                name = os.path.normpath(member.name).lstrip('/')
                hidden = os.path.basename(name)[0] == '.'
                if member.isfile() and not hidden and _suffix(name) in IMAGE + JSON:
                    part = Part(file, member.offset_data, member.size)
                    members.setdefault(_stem(name), []).append((name, part))
                tar.members = []  # a shard has tens of thousands; the module would keep them all
    except (tarfile.TarError, EOFError) as error:
        yield BrokenTar(place, str(error))
    for stem in sorted(members):
        yield _pair(stem, f'{place}/{stem}', members[stem])


def _pair(name: str, place: str, parts: list[tuple[str, Part]]) -> Pair:
    images = [part for file, part in parts if _suffix(file) in IMAGE]
    jsons = [part for file, part in parts if _suffix(file) in JSON]
    return Pair(name, place, images, jsons)


def _suffix(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
