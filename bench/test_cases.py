"""The same cases under pytest-benchmark: `pytest bench --benchmark-only`, a group per case."""

from functools import cache

import pytest
import torch

from hotplate.bench import registry
from hotplate.bench.harness import Case, Inputs, checked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [case for name in registry.names() for case in registry.cases(name, DEVICE, quick=False)]
PAIRS = [(case, provider) for case in CASES for provider in case.providers]


@cache
def _checked(index: int) -> tuple[Inputs, dict[str, float]]:
    return checked(CASES[index])


@pytest.mark.parametrize(("case", "provider"), PAIRS, ids=[f"{case}-{provider}" for case, provider in PAIRS])
def test_speed(benchmark, case: Case, provider: str) -> None:
    """A case is checked when its first provider comes, and dropped from memory when the next case comes."""
    torch.set_num_threads(1)
    index = next(n for n, other in enumerate(CASES) if other is case)
    if provider == next(iter(case.providers)):
        _checked.cache_clear()
    inputs, errors = _checked(index)
    benchmark.group = str(case)
    benchmark.extra_info["max_err"] = errors[provider]
    run = case.providers[provider]

    def call() -> None:
        run(inputs)
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=7, warmup_rounds=1)
