"""Every case under pytest-benchmark, a group per case and a benchmark per provider: `pytest bench --benchmark-only`.

`hotplate bench` runs this file. The rounds of a case's providers are interleaved (timing.py), and pytest-benchmark
reads each provider's rounds off a clock that moves by them: its tables, files and comparisons hold what was measured.
"""

import pytest

from hotplate.bench.harness import Case
from hotplate.bench.timing import Meter, Samples

pytestmark = pytest.mark.timeout(0)  # the first provider's test waits for the rounds of all of them


def test_speed(benchmark, case: Case, provider: str, meter: Meter, measured: dict[str, Samples], keep_row) -> None:
    """One provider: its samples, its row in the result file."""
    samples = measured[provider]
    benchmark.extra_info["row"] = keep_row(case, provider, samples)
    rounds = iter(samples.wall)
    benchmark.pedantic(lambda: meter.advance(next(rounds)), rounds=len(samples.wall), iterations=1)
