"""Training steps on a stand-in GPU, each with a defect: prints what became of them as JSON. A process of its own."""

import json

from hotplate.bench.stand_in import library

loaded = library.load()

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from hotplate.bench.stand_in import device  # noqa: E402

device.install(90, loaded)

from hotplate.bench.stand_in import steps  # noqa: E402
from hotplate.train.step import Step  # noqa: E402

WORKLOAD = "lstm-small eager"
PLAIN = Step.__call__


@triton.jit
def product(x, factor, out, M: tl.constexpr, K: tl.constexpr):
    """x x^T of x [M, K], as many bytes of shared memory as two x have."""
    rows, terms = tl.arange(0, M), tl.arange(0, K)
    block = tl.load(x + rows[:, None] * K + terms[None, :])
    other = tl.load(x + rows[None, :] * K + terms[:, None])
    tl.store(out + rows[:, None] * M + rows[None, :], tl.dot(block, other) * tl.load(factor))


def launch(batch, programs=1, K=64, dtype=torch.float32):
    made = batch.tokens.new_empty
    x, out = made(64, K, dtype=torch.bfloat16), made(64, 64, dtype=torch.float32)
    product[(programs,)](x, made(1, dtype=dtype), out, M=64, K=K)


DEFECTS = {
    "nothing": lambda batch: None,
    "the host waits": lambda batch: batch.tokens.sum().item(),
    "a program too large": lambda batch: launch(batch, K=1024),
    "double precision": lambda batch: launch(batch, dtype=torch.float64),
    "no program": lambda batch: launch(batch, programs=0),
    "an operation": lambda batch: batch.tokens.neg(),
    "a launch": launch,
    "memory": lambda batch: batch.tokens.new_empty(1 << 30),
}


def outcome(defect):
    def step(self, batches, *others, **named):
        kept = DEFECTS[defect](batches[0])
        result = PLAIN(self, batches, *others, **named)
        del kept
        return result

    Step.__call__ = step
    try:
        return steps.measure([WORKLOAD])[WORKLOAD]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print(json.dumps({defect: outcome(defect) for defect in DEFECTS}))
