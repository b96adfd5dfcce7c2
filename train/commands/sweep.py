"""`hotplate sweep PLAN [flags]`: models x classes x seeds, each one run; the same command goes on where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hotplate.train import console, settings
from hotplate.train.errors import InputError
from hotplate.train.science import sweep
from hotplate.train.science.sweep import Planned
from hotplate.train.untrusted import parse_json


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Run a plan (see train/science/sweep.py and the shipped studies)."""

    status: bool = False
    """show where each run stands, and start nothing"""
    folder: str | None = None
    """another folder than the plan's"""
    executor: Literal["here", "slurm", "local", "debug"] = "here"
    """here: one after the other; slurm: one job per run through submitit (local and debug are its trial modes)"""
    slurm: str = "{}"
    """submitit parameters as JSON, e.g. '{"slurm_partition": "gpu", "timeout_min": 400, "gpus_per_node": 1}'"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate sweep nano`; exit code 1 when runs failed."""
    name, flags = settings.split_preset(arguments, "")
    config = settings.parse(SweepConfig(), flags, "hotplate sweep PLAN")
    if not name:
        raise InputError("hotplate sweep: want a plan first: a .toml file, or a shipped study such as nano")
    plan = sweep.load_plan(name)
    if config.folder is not None:
        plan = replace(plan, folder=config.folder)
    runs = sweep.plan_runs(plan, name)
    try:
        slurm = parse_json(config.slurm)
    except ValueError as error:
        raise InputError(f"--slurm: not JSON: {error}") from error
    if not isinstance(slurm, dict):
        raise InputError(f"--slurm: want a JSON object, got {config.slurm}")
    if config.status:
        show(runs)
        return 0
    folder = Path(plan.folder)
    speeds = sweep.throughputs([run for run in runs if run.status != "done"], folder, console.say)
    if config.executor == "here":
        failed = sweep.run_here(runs, speeds, console.say)
        show(runs)
        return 1 if failed else 0
    jobs = sweep.submit(runs, speeds, folder, config.executor, slurm)
    for job in jobs:
        console.say(f"job {job.job_id}")
    if config.executor != "slurm":
        for job in jobs:
            job.result()
        show(runs)
    else:
        console.say(f"{len(jobs)} jobs handed over; `hotplate sweep {name} --status` shows where they stand")
    return 0


def show(runs: Sequence[Planned]) -> None:
    """One line per run."""
    rows = []
    for run in runs:
        cells = [str(run), run.status, "", "", ""]
        if run.status == "done":
            tokens, score, goodput = sweep.outcome(run)
            cells[2:] = [console.quantity(tokens), "" if score is None else f"{score:.4f}", f"{goodput:.0%}"]
        elif run.status == "failed":
            cells[1] = f"failed: {sweep.failure(run)}"
        rows.append(cells)
    done = sum(run.status == "done" for run in runs)
    console.table(f"{done} of {len(runs)} runs done", ["run", "status", "tokens", "nppl/byte", "goodput"], rows)
