"""What a JSON file beside images is: SA-1B's, labelme's, or of something else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from samjax.data.formats.tar import ByteRange

SAMPLE = 100  # files that are read to tell what most of them are


def sa1b_content(file: ByteRange) -> Mapping | None:
    """Parsed JSON of SA-1B's form, None if it is anything else or cannot be read."""
    content = _parsed(file, b'"image"')
    is_of_form = isinstance(content.get('image'), Mapping) and isinstance(content.get('annotations'), list)
    return content if is_of_form else None


def labelme_content(file: ByteRange) -> Mapping | None:
    """Parsed JSON of labelme's form, None if it is anything else or cannot be read."""
    content = _parsed(file, b'"shapes"')
    is_of_form = isinstance(content.get('shapes'), list)
    return content if is_of_form and not {'imagePath', 'imageData', 'version'}.isdisjoint(content) else None


def _parsed(file: ByteRange, word: bytes) -> Mapping:
    """A JSON object, empty if it is something else; a file without the word is not parsed, it may be large."""
    try:
        data = file.read()
        content = json.loads(data) if word in data else None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, Mapping) else {}


def evenly(files: Sequence, most: int = SAMPLE) -> Sequence:
    """At most `most` of them, evenly spread."""
    return [files[n * len(files) // most] for n in range(most)] if len(files) > most else files
