"""`hotplate backends`: what can run on this machine, and why the rest cannot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from hotplate.kernels import backends
from hotplate.kernels.attention.choice import automatic, statuses
from hotplate.kernels.attention.problem import Problem
from hotplate.train import console, settings

ROWS, STEPS, HEADS, HEAD_WIDTH = 16, 1024, 12, 64  # what attention is asked to serve: a training step of a small GPT


@dataclass(frozen=True, kw_only=True)
class BackendsConfig:
    """The problem that attention is asked about: training in packed rows."""

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """where its tensors are"""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """of queries, keys and values"""
    head_width: int = HEAD_WIDTH
    """features per head"""
    json: str | None = None
    """also write the table to this file"""


def problem_of(config: BackendsConfig) -> Problem:
    return Problem(
        B=ROWS,
        T=STEPS,
        S=STEPS,
        H=HEADS,
        Hkv=HEADS,
        K=config.head_width,
        dtype=getattr(torch, config.dtype),
        device=torch.device(config.device),
        packed=True,
        gradient=True,
    )


def found(problem: Problem) -> list[backends.Status]:
    """Attention's backends, the optimiser's, and the recurrent rooms'."""
    return [*statuses(problem), *backends.optimizers(), *backends.recurrent()]


def main(arguments: Sequence[str]) -> int:
    """`hotplate backends --json backends.json`."""
    config = settings.parse(BackendsConfig(), arguments, "hotplate backends")
    problem = problem_of(config)
    rows, (auto, _) = found(problem), automatic(problem)
    table = [
        [row.part, row.name + " (auto)" * (row.part == "attention" and row.name == auto)]
        + ["yes" if row.available else "no", row.version or "", row.reason]
        for row in rows
    ]
    console.table("backends on this machine", ["part", "name", "available", "version", "reason"], table)
    if config.json:
        body = {"device": config.device, "dtype": config.dtype, "backends": [asdict(row) for row in rows]}
        Path(config.json).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0
