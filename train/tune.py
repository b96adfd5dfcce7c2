"""How to run an update on this machine: measured, not guessed (science/batch_search.py).

A micro-batch of m rows is accumulated batch / m times; blocks are compiled or not, and recomputed where keeping them
did not fit. What is compared is tokens/s of whole updates.
"""

from dataclasses import dataclass, replace

from hotplate.train import console
from hotplate.train.compiling import compile_failure
from hotplate.train.config import ExecutionConfig, TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.ranks import Ranks
from hotplate.train.science.batch_search import Search, search_micro_batch
from hotplate.train.step import resolve_precision
from hotplate.train.throughput import random_batch

SEARCH_SECONDS = 60.0  # of a search within a run


@dataclass(frozen=True)
class Tuned:
    """The searches that were made, each under one way to execute blocks."""

    searches: tuple[tuple[ExecutionConfig, Search], ...]

    @property
    def best(self) -> tuple[ExecutionConfig, Search]:
        return max(self.searches, key=lambda pair: pair[1].best.tokens_per_second)


def tune(name: str, config: TrainConfig, ranks: Ranks, *, seconds: float, refresh: bool, compiled: bool) -> Tuned:
    """Searches for the rows of one of `ranks`, on this process alone, so that ranks cannot disagree: as the config
    executes blocks; compiled too where `compiled` asks; with recomputation where rows did not fit. Together they take
    about `seconds`, and what torch.compile takes.

    InputError when the config names a micro-batch already, or when not one row fits.
    """
    if config.micro_batch is not None:
        raise InputError(f"tune: --micro-batch {config.micro_batch} is chosen already; leave it out, or leave out tune")
    alone, update = Ranks(0, 1, ranks.device), config.batch // ranks.world
    if update < 1:
        raise InputError(f"tune: --batch {config.batch} has no row for each of {ranks.world} ranks; raise it")
    ways = [config.execution]
    if compiled and not config.execution.compile:
        ways.append(replace(config.execution, compile=True))
    found: list[tuple[ExecutionConfig, Search]] = []
    for way in ways:
        search = search_micro_batch(
            name,
            replace(config, execution=way),
            alone,
            update=update,
            seconds=seconds / (len(ways) + 1),
            refresh=refresh,
        )
        found.append((way, search))
        if search.tried[-1].out_of_memory and not way.recompute and way == ways[0]:
            ways.append(replace(way, recompute=True))
    return Tuned(tuple(found))


def tuned(name: str, config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The config with the micro-batch and execution that the main rank finds fastest. Compiling is tried on GPUs: on a
    CPU it takes longer than it can save in short runs, and the C kernels leave it little (docs/log.md)."""
    chosen = None
    if ranks.main:
        batch = random_batch(config.model, 1, config.data.window, ranks.device)
        compiled = ranks.device.type == "cuda"
        if compiled and (why := compile_failure(config.model, resolve_precision(config, ranks.device), batch)):
            console.complain(f"warning: --tune: {why}; only uncompiled blocks are tried")
            compiled = False
        way, search = tune(name, config, ranks, seconds=SEARCH_SECONDS, refresh=False, compiled=compiled).best
        chosen = [search.best.rows, way.compile, way.recompute]
    shared = ranks.share(chosen)
    assert isinstance(shared, list)
    rows, compiled, recompute = shared
    execution = replace(config.execution, compile=compiled, recompute=recompute, tune=False)
    return replace(config, micro_batch=rows, execution=execution)
