"""Whether torch.compile can do a run's blocks: tried on batches of the run before anything is trained or timed."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train import console
from hotplate.train.config import TrainConfig
from hotplate.train.engines.base import weights_type
from hotplate.train.errors import InputError
from hotplate.train.growing import final_model
from hotplate.train.inputs import Source
from hotplate.train.plan import Layout
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision, autocast


def compiled_where_it_works(
    config: TrainConfig, ranks: Ranks, precision: Precision, layout: Layout, sources: Sequence[Source]
) -> tuple[TrainConfig, str | None]:
    """The config of a run with --compile, and why blocks of its models fail on a micro-batch of `sources`; then there
    is a warning, and no rank compiles any. InputError instead where the config says stop."""
    batches = [source.batch(0, layout.rows[: layout.micro_rows]).to(ranks.device) for source in sources]
    models = dict.fromkeys((config.model, final_model(config)))
    recompute = config.execution.recompute
    found = (compile_failure(model, precision, batch, recompute=recompute) for model in models for batch in batches)
    why = next((reason for reason in found if reason is not None), None)
    told = [f"rank {rank}: {reason}" for rank, reason in enumerate(ranks.gather(why)) if reason is not None]
    if not told:
        return config, None
    why = told[0] if ranks.world > 1 else told[0].partition(": ")[2]
    if config.guard.failed_compile == "stop":
        raise InputError(f"--compile: {why}; leave out --compile, or use --guard.failed-compile warn")
    if ranks.main:
        console.complain(f"warning: --compile: {why}; blocks run uncompiled")
    return replace(config, execution=replace(config.execution, compile=False)), why


def compile_failure(model: ModelConfig, precision: Precision, batch: Batch, *, recompute: bool = False) -> str | None:
    """Why forward and backward of a compiled block fail, in one line; None where they work. What fails without the
    compiler, too, is raised."""
    one = LanguageModel.build(replace(model, layers=1), 0, batch.tokens.device, weights_type(precision))
    one.execute(compiled=True, recompute=recompute)
    try:
        _pass(one, precision, batch)
    except torch.OutOfMemoryError:
        return None  # the run itself says what there is no room for
    except Exception as error:  # a compiler, and what it calls, may raise anything: what is left without it decides
        why = _first_line(error)
    else:
        return None
    plain = LanguageModel.build(replace(model, layers=1), 0, batch.tokens.device, weights_type(precision))
    _pass(plain, precision, batch)
    return why


def _pass(model: LanguageModel, precision: Precision, batch: Batch) -> None:
    with autocast(precision, batch.tokens.device):
        output = model(batch)
    output.loss_sum.backward()


def _first_line(error: BaseException) -> str:
    """The kind of the first cause, and the first line of what it says."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {next((line for line in lines if not line.endswith(':')), 'no reason given')}"
