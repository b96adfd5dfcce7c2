"""One place for trials."""

import pytest

from hotplate.bench.faults.arena import Arena
from hotplate.bench.faults.nursery import Nursery


@pytest.fixture(scope="session")
def arena(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("arena"), nursery)
