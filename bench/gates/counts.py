"""What one training step asks of the machine, counted: the same on every run, whatever else the machine does.

Per model family and implementation, at one tiny shape on a CPU: operations dispatched, readings by the host, graph
breaks and compilations, floating-point operations, most bytes of live tensors, and bytecodes of Python run between
them. Any difference from the recorded counts fails, also for the better: a gain is recorded by whoever made it.
"""

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hotplate.bench.live import Live
from hotplate.kernels import native
from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.loop import Meter
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch

FAMILIES = ("gpt", "decoder", "qlstm", "lstm", "lstm-dense", "lstm-diagonal")
IMPLS = ("eager", "native")
MARGINS = {"bytecodes": 0.02}  # a line more is no regression; all else is exact
B, T = 2, 16
# What makes the host wait for the device: `.item()`, tests of truth, shapes that depend on values.
SYNCS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")
CPU = torch.device("cpu")
CPU_ONLY = (  # readings that a step on a GPU does not have: the range check of targets, and the C form of AdamW
    "kernels/cross_entropy/op.py:_want_rows",
    "kernels/adamw/native.py:adamw",
)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Counts:
    """Of one step that is not among the first two."""

    operations: dict[str, int]  # by name
    host_syncs: dict[str, int]  # by the place that reads a value; CPU_ONLY places are no part of a step on a GPU
    graph_breaks: int | None  # of the compiler in forward and loss; None: the C form, which it cannot see into
    flops: int  # of products and attention, as torch counts them
    peak_bytes: int  # live tensors above the start
    bytecodes: int  # of Python


def workloads() -> list[str]:
    """`family impl` of everything counted."""
    return [f"{family} {impl}" for family in FAMILIES for impl in IMPLS]


def why_not(workload: str) -> str | None:
    """Why the workload cannot run here; None where it can."""
    family, impl = workload.split()
    mixer = PRESETS[f"{family}-nano"].mixer.kind
    rooms = ["mlp", "rmsnorm", "layernorm", "rotary", "adamw", "cross_entropy", "total_norm", mixer]
    return next((reason for room in rooms if (reason := native.why_not(room))), None) if impl == "native" else None


def model_config(family: str, impl: Any) -> ModelConfig:
    """The family's form at width 32."""
    config = PRESETS[f"{family}-nano"]
    mixer = replace(config.mixer, heads=2, head_width=16, kv_heads=1 if family == "decoder" else None, impl=impl)
    return replace(config, layers=2, width=32, ffn=64, vocab=256, context=T, mixer=mixer, impl=impl)


def step_of(family: str, impl: Any) -> Callable[[], None]:
    """A step as the loop makes it, on one batch; carried states go on."""
    config = model_config(family, impl)
    model = LanguageModel.build(config, seed=0)
    optimizer = Optimizer(model, OptimizerConfig(impl=impl))
    step = Step(model, optimizer, Ranks(0, 1, CPU), "fp32", targets=B * T)
    batch, meter = random_batch(config, B, T, CPU), Meter(CPU, step.objective.names)
    states = [model.initial_state(B) if config.recurrent else None]

    def run() -> None:
        nonlocal states
        update, states = step([batch], states, lr=1e-3)
        meter.add(update)

    return run


def _place() -> str:
    """file:function of the innermost frame of kernels, model or train."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("kernels", "model", "train"):
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{path.relative_to(ROOT).as_posix()}:{name}"
        frame = frame.f_back
    return "elsewhere"


class Dispatched(TorchDispatchMode):
    """Counts operations by name, and the bytes of storages that they make while these live."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.host_syncs: Counter[str] = Counter()
        self.live = Live()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        self.operations[name] += 1
        if name.split(".")[1] in SYNCS:
            self.host_syncs[_place()] += 1
        self.live.known(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        result = func(*args, **(kwargs or {}))
        self.live.made(x for x in tree_leaves(result) if isinstance(x, Tensor))
        return result


@contextmanager
def _bytecodes(found: list[int]) -> Iterator[None]:
    """Counts the bytecodes of Python run in the block into found[0]."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        found[0] += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def graph_breaks(family: str, impl: str) -> int:
    """Where the compiler gives up in forward and loss."""
    config = model_config(family, impl)
    model, batch = LanguageModel.build(config, seed=0), random_batch(config, B, T, CPU)
    torch._dynamo.reset()

    def loss(batch: Batch) -> Tensor:
        return model(batch).loss_sum

    found = torch._dynamo.explain(loss)(batch)
    torch._dynamo.reset()
    return len(found.break_reasons)


def count(run: Callable[[], None]) -> dict[str, Any]:
    """Counts of one call of `run`, which has been called before; without graph breaks."""
    gc.collect()
    gc.disable()
    try:
        with Dispatched() as seen:
            run()
        with FlopCounterMode(display=False) as flops:
            run()
        found = [0]
        with _bytecodes(found):
            run()
    finally:
        gc.enable()
    return {
        "operations": dict(sorted(seen.operations.items())),
        "host_syncs": dict(sorted(seen.host_syncs.items())),
        "flops": flops.get_total_flops(),
        "peak_bytes": seen.live.peak,
        "bytecodes": found[0],
    }


def measure(workload: str) -> Counts:
    """Counts of the third step and on: the first two fill what is kept from then on."""
    family, impl = workload.split()
    run = step_of(family, impl)
    run()
    run()
    breaks = graph_breaks(family, impl) if impl == "eager" else None
    return Counts(graph_breaks=breaks, **count(run))
