"""`hotplate bench readme`: writes the README's performance tables from the result files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotplate.bench import readme
from hotplate.train import settings
from hotplate.train.console import say


@dataclass(frozen=True, kw_only=True)
class ReadmeConfig:
    """Performance tables from bench/results, the newest file of each machine."""

    path: Path = readme.README
    """the file with the marks"""
    check: bool = False
    """write nothing; exit with 1 when the tables are not those of the result files"""


def main(arguments: Sequence[str]) -> int:
    config = settings.parse(ReadmeConfig(), arguments, "hotplate bench readme")
    text = config.path.read_text(encoding="utf-8")
    made = readme.rewritten(text, readme.section(root=config.path.resolve().parent))
    stale = made != text
    if config.check:
        say(f"{config.path}: {'stale: run hotplate bench readme' if stale else 'as the result files say'}")
        return int(stale)
    config.path.write_text(made, encoding="utf-8")
    say(f"{config.path}: {'rewritten' if stale else 'as it was'}")
    return 0
