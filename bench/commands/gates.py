"""`hotplate bench gates`: holds the tree to its recorded counts, or records them."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy
import torch
import tyro

from hotplate.bench.gates import budgets, counts, gpu, instructions
from hotplate.train import settings
from hotplate.train.console import say

Gate = Literal["counts", "gpu", "instructions"]
ELSEWHERE = """machine code: tests/kernels/test_*compiled.py hold Triton kernels to tests/kernels/budgets; to record:
  python tests/kernels/test_compiled.py
ratio: hotplate bench ratio [BASE] times this tree against another revision, in pairs"""


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """Compare what a step and the packer ask of a machine with bench/gates/*.json, two-sided."""

    only: Annotated[tuple[Gate, ...], tyro.conf.arg(name="gate")] = ("counts", "gpu", "instructions")
    """which gates: a step on this CPU, a step on a GPU that need not be there, the packer"""
    record: bool = False
    """write what is found as the new budget"""


def versions() -> dict[str, str]:
    """What the counts depend on besides this tree."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"torch": torch.__version__.split("+")[0], "numpy": numpy.__version__, "python": python}


def main(arguments: Sequence[str]) -> int:
    """0 when everything is as recorded (or was recorded now), 1 otherwise."""
    config = settings.parse(GatesConfig(), arguments, "hotplate bench gates")
    wrong = 0
    for gate in config.only:
        found = _found(gate)
        if config.record:
            kept = budgets.load(gate)["workloads"]
            budgets.save(gate, versions(), {name: found.get(name, kept.get(name)) for name in workloads(gate)})
            say(f"{gate}: recorded {len(found)} in {budgets.path_of(gate)}")
            continue
        for name, lines in compare(gate, found).items():
            wrong += bool(lines)
            say(f"{'DIFFERS' if lines else 'as recorded':12} {gate}: {name}" + "".join(f"\n  {line}" for line in lines))
    say(ELSEWHERE)
    if wrong:
        say(f"{wrong} differ: mend the cause, or if it is meant, record it: hotplate bench gates --record")
    return 1 if wrong else 0


def workloads(gate: Gate) -> Sequence[str]:
    """What the gate counts."""
    return {"counts": counts.workloads(), "gpu": gpu.WORKLOADS, "instructions": tuple(instructions.WORKLOADS)}[gate]


def compare(gate: Gate, found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Differences from the budget by workload. Bytecodes are compared where Python is the recorded one."""
    body = budgets.load(gate)
    margins = {"instructions": instructions.MARGIN, **counts.MARGINS}
    here = versions()
    other = [name for name, old in body["versions"].items() if here[name] != old]
    if other and (gate == "instructions" or "torch" in other):
        say(f"{gate}: recorded with {body['versions']}, here is {here}: nothing is compared")
        return {}
    if "python" in other:
        margins["bytecodes"] = float("inf")
        say(f"{gate}: recorded with Python {body['versions']['python']}: bytecodes are not compared")
    recorded = body["workloads"]
    return {
        name: budgets.differences(recorded[name], one, margins) if recorded.get(name) else ["not recorded"]
        for name, one in found.items()
    }


def _found(gate: Gate) -> dict[str, dict[str, Any]]:
    """Counts of every workload that can run here; a line for the others."""
    torch.set_num_threads(1)
    reasons = {
        "counts": counts.why_not,
        "gpu": lambda name: gpu.why_not(),
        "instructions": lambda name: instructions.why_not(),
    }
    able = []
    for name in workloads(gate):
        if reason := reasons[gate](name):
            say(f"not checked  {gate}: {name}: {reason}")
        else:
            able.append(name)
    if gate == "gpu":
        return gpu.measure(able) if able else {}
    return {name: asdict(counts.measure(name)) if gate == "counts" else instructions.measure(name) for name in able}
