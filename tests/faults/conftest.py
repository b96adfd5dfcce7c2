"""One place for trials, and the nursery that its processes come from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate.bench.faults import catalogue
from hotplate.bench.faults.arena import Arena


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder: Path = tmp_path_factory.mktemp("arena")
    with catalogue.arena(folder) as place:
        yield place
