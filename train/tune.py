"""How to cut an update into micro-batches on this machine: measured, not guessed (science/batch_search.py).

A micro-batch of m rows is accumulated batch / m times; what is compared is tokens/s of whole updates.
"""

from dataclasses import replace

from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.ranks import Ranks
from hotplate.train.science.batch_search import Search, search_micro_batch

SEARCH_SECONDS = 60.0  # of a search within a run


def tune(name: str, config: TrainConfig, ranks: Ranks, *, seconds: float, refresh: bool) -> Search:
    """The search for the rows of one of `ranks`; on this process alone, so that ranks cannot disagree.

    InputError when the config names a micro-batch already, or when not one row fits.
    """
    if config.micro_batch is not None:
        raise InputError(f"tune: --micro-batch {config.micro_batch} is chosen already; leave it out, or leave out tune")
    alone, update = Ranks(0, 1, ranks.device), config.batch // ranks.world
    if update < 1:
        raise InputError(f"tune: --batch {config.batch} has no row for each of {ranks.world} ranks; raise it")
    return search_micro_batch(name, config, alone, update=update, seconds=seconds, refresh=refresh)


def tuned(name: str, config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The config with the micro-batch that the main rank finds fastest."""
    rows = None
    if ranks.main:
        rows = tune(name, config, ranks, seconds=SEARCH_SECONDS, refresh=False).best.rows
    return replace(config, micro_batch=int(str(ranks.share(rows))), tune=False)
