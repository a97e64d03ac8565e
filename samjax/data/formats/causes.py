"""Why annotations were left out, or what is suspicious about them: counts by cause, with an example of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Cause(NamedTuple):
    """How often something occurred, and where it did first."""

    count: int
    example: str  # such as 'annotation 12'; empty if it is not known


class Causes(dict[str, Cause]):
    """`Cause` by its short description, such as 'crowd'; JSON holds [count, example]."""

    def add(self, cause: str, example: str, count: int = 1) -> None:
        """Counts `count` more; nothing if that is 0."""
        if count:
            before, first = self.get(cause, (0, example))
            self[cause] = Cause(before + count, first)

    def add_all(self, causes: Mapping[str, Sequence], location: str = '') -> None:
        """Adds those of a part.  location: of the part, which is put before its examples."""
        for cause, (count, example) in causes.items():
            self.add(cause, f'{location}: {example}' if location and example else location or example, count)

    @property
    def counts(self) -> dict[str, int]:
        return {cause: count for cause, (count, _) in self.items()}

    def lines(self) -> list[str]:
        """A line for each, such as '2 crowd, such as x.jpg: annotation 12'."""
        return [
            f'{count} {cause}' + (f', such as {example}' if example else '') for cause, (count, example) in self.items()
        ]
