"""A parser and what it is fed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotplate.train.errors import InputError


@dataclass(frozen=True)
class Target:
    """`parse` reads the bytes that stand in `path`, a file of the name it expects in a folder it expects."""

    name: str
    path: Path
    seeds: list[bytes]
    parse: Callable[[], object]

    def accepts(self, content: bytes) -> bool:
        """Whether the parser takes these bytes. Any other exception than InputError is the finding."""
        self.path.write_bytes(content)
        try:
            self.parse()
        except InputError:
            return False
        return True
