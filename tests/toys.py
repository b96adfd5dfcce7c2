"""A case that costs nothing, and what tests of the harness share."""

import pytest
import torch

from hotplate.bench import rates
from hotplate.bench.harness import Case
from hotplate.bench.results import Row

FIELDS = {
    *("bench", "case", "provider", "device", "dtype", "ms_median", "ms_p20", "ms_p80", "floor_ms"),
    *("tokens_per_s", "peak_bytes", "max_err", "floor_share", "bytes_per_s", "flops_per_s", "mtokens_per_hour"),
}


@pytest.fixture(scope="module")
def rates_of_a_moment():
    """Of this processor, but of less memory and smaller products: ten seconds less, and no test looks at how large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "CPU_SIDES", (64, 256))
        patch.setattr(rates, "CPU_BYTES", 12 << 20)
        rates.measured_rates.cache_clear()
        yield
    rates.measured_rates.cache_clear()


def toy(**providers):
    """Doubling a vector; providers are name -> function of the vector."""
    return Case(
        bench="toy",
        name="double",
        device="cpu",
        dtype=torch.float32,
        prepare=lambda: torch.arange(1.0, 5.0),
        truth=lambda x: [2 * x.double()],
        providers=providers,
        tolerance=1e-6,
        tokens=4,
        moved_bytes=32,
        flops=4,
    )


def a_row(**changes) -> Row:
    values = {"bench": "b", "case": "c", "provider": "ours", "device": "cpu", "dtype": "float32", "max_err": 0.0}
    values |= {"ms_median": 2.0, "ms_p20": 2.0, "ms_p80": 2.0, "cpu_ms_median": None, "floor_ms": None}
    return Row(**values | changes)
