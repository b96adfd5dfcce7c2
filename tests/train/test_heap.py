import subprocess
import sys

import pytest

from hotplate.train import heap

# Page faults of five rounds, each of which takes and frees a block that glibc would give back to the system; before
# them rounds in which the heap finds its size.
FAULTS = """
import resource, torch
from hotplate.train import heap
torch.set_num_threads(1)
def once():
    torch.empty(16 << 20).fill_(1.0)
def faults():
    for _ in range(20):
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        once()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
usual = faults()
assert heap.keep_freed_memory()
print(usual, faults())
"""
BLOCK_PAGES = (64 << 20) // (2 << 20)  # of the largest size there is


@pytest.mark.skipif(not heap.adjustable(), reason="this C library has no mallopt")
def test_freed_memory_is_kept_when_told():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120).stdout
    usual, kept = map(int, out.split())
    assert usual >= 5 * BLOCK_PAGES, out
    assert kept < BLOCK_PAGES, out
