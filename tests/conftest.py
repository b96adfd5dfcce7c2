"""Fixtures that every test sees: one seed, memory that shows when it is read before it is written, and processes."""

from collections.abc import Iterator

import pytest
import torch

from hotplate.bench.faults.nursery import Nursery


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # the shapes are small: threads would wait for one another longer than they compute


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts commands in processes of their own, without the seconds that loading torch takes."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as server:
        yield server


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN (integers: the largest value) until something writes them."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = was_filling
    torch.use_deterministic_algorithms(was_deterministic)
