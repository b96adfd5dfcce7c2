"""A training run from config to summary: finds out what there is, plans it, and hands it to a session."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from hotplate.model.cost import cost
from hotplate.train import checkpoint, console, flight, resume
from hotplate.train.budget import Goodput, Plan
from hotplate.train.checkpoint import Checkpoint
from hotplate.train.compiling import compiled_where_it_works
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.errors import InputError
from hotplate.train.growing import final_model
from hotplate.train.guard import RunLock
from hotplate.train.inputs import describe_data, open_sources
from hotplate.train.plan import Layout, check_disk, describe, lay_out, out_of_memory, plan_run
from hotplate.train.ranks import Ranks, start
from hotplate.train.session import Session
from hotplate.train.step import Precision, resolve_precision
from hotplate.train.tune import tuned
from hotplate.train.watchdog import FOLDER, Watchdog, account


def run(config: TrainConfig, preset: str, goodput: Goodput | None = None) -> int:
    """Train; 0 when done or stopped by a signal. InputError for what the user can mend. `goodput`: a meter that runs
    already."""
    goodput = goodput or Goodput()
    ranks = start(config)
    try:
        if config.execution.tune:
            with goodput.during("measure"):
                config = tuned(preset, config, ranks)
        return _run(config, preset, ranks, goodput)
    finally:
        ranks.close()


def _run(config: TrainConfig, preset: str, ranks: Ranks, goodput: Goodput) -> int:
    precision, layout = resolve_precision(config, ranks.device), lay_out(config, ranks)
    config = replace(config, precision=precision)  # a run does not change it on a machine that would choose otherwise
    folder = Path(config.run.folder or f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(str(ranks.share(str(folder))))
    with goodput.during("data"):
        # One rank's hashing is enough.
        dataset, sources = open_sources(config, config.data.verify if ranks.main else "header")
    uncompiled = None
    if config.execution.compile and config.engine.kind == "ddp":  # other engines refuse it
        with goodput.during("compile"):
            config, uncompiled = compiled_where_it_works(config, ranks, precision, layout, sources)
    if config.dry_run:
        plan = _planned(config, ranks, precision, layout, always_measure=True)
        if ranks.main:
            lines = describe(config, ranks, precision, layout, plan, folder)
            console.say("\n".join([*lines, describe_data(sources[0], plan)]))
        return 0
    lock = RunLock(folder) if ranks.main else None
    try:
        saved = _find_checkpoint(config, folder, ranks)
        if saved is None:
            check_disk(folder, config, cost(final_model(config), config.data.window), precision)
            with goodput.during("measure"):
                plan = _planned(config, ranks, precision, layout)
        else:
            plan = _resumed_plan(saved, config, dataset, ranks, precision, layout)
        if config.run.resume == "auto":
            account(folder, {} if saved is None else saved.trainer["paid_seconds"], goodput)
        if ranks.device.type == "cuda" and ranks.world > 1:
            flight.record(folder / FOLDER)  # where the user named no folder, it is known only now
        with Watchdog(folder, ranks, goodput, config.guard.hang_seconds, console.complain) as watchdog:
            session = Session(config, preset, ranks, precision, layout, plan, dataset, folder, goodput, uncompiled)
            return session.train(sources, saved, watchdog)
    finally:
        if lock is not None:
            lock.release()


def _planned(
    config: TrainConfig, ranks: Ranks, precision: Precision, layout: Layout, *, always_measure: bool = False
) -> Plan:
    """The plan. InputError with advice where measuring a throughput fills the memory."""
    try:
        return plan_run(config, ranks, precision, layout, always_measure=always_measure)
    except torch.OutOfMemoryError as error:
        why = str(error).splitlines()[0]
        raise InputError(out_of_memory(why, config, config.model, precision, layout)) from error


def _find_checkpoint(config: TrainConfig, folder: Path, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from. InputError when there is one and the config does not say to resume."""
    checkpoints = folder / "checkpoints"
    if ranks.main and (stale := checkpoint.clean(checkpoints)):
        console.say(f"removed {len(stale)} half-written checkpoints: {', '.join(path.name for path in stale)}")
    ranks.barrier()
    if config.run.resume == "no":
        if checkpoint.listing(checkpoints):
            raise InputError(
                f"{folder}: holds a run already; go on with --run.resume auto, or choose another --run.folder"
            )
        return None
    found, problems = checkpoint.newest(checkpoints, ranks)
    for wrong in problems if ranks.main else []:
        console.complain(f"warning: {wrong}")
    if ranks.main and found is not None:
        for path in checkpoint.listing(checkpoints):
            if checkpoint.step_of(path) > checkpoint.step_of(found.path):
                console.complain(f"warning: {path} is set aside as {checkpoint.set_aside(path).name}")
    return found


def _resumed_plan(
    saved: Checkpoint,
    config: TrainConfig,
    dataset: Dataset,
    ranks: Ranks,
    precision: Precision,
    layout: Layout,
) -> Plan:
    """The stored plan: a budget is turned into steps once. A changed budget (if allowed) makes a new one."""
    changed = resume.check_config(saved.trainer["config"], config)
    resume.check_data(saved.trainer, dataset, config.data.allow_change)
    if {"budget", "tokens_per_second", "reference"} & set(changed):
        return _planned(config, ranks, precision, layout)
    return Plan(**saved.trainer["plan"])
