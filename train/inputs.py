"""What a run reads: data sets laid into rows, and weights to start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from hotplate.train import checkpoint
from hotplate.train.budget import Plan
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.mixed import MixedTokenizer
from hotplate.train.data.mixture import MixtureSource
from hotplate.train.data.pairs import PairSource, read_pairs
from hotplate.train.data.prepare import open_data
from hotplate.train.data.sources import PackedSource
from hotplate.train.data.streams import StreamSource
from hotplate.train.errors import InputError
from hotplate.train.resume import differences
from hotplate.train.settings import to_table
from hotplate.train.speech.interleaved_source import InterleavedSource
from hotplate.train.speech.spoken import read_spoken

Source = PackedSource | StreamSource | PairSource | MixtureSource


def open_sources(config: TrainConfig, verify: Literal["header", "full"]) -> tuple[Dataset, list[Source]]:
    """The data set, and rows of its training split; also rows of `growth.data` where the run switches to it."""
    dataset = open_data(config.data.source, vocab=config.model.vocab, verify=verify)
    if config.preference.pairs is not None:
        return dataset, [_pair_source(config, config.preference.pairs, dataset)]
    sources = [build_source(config, config.data.source, dataset)]
    if config.growth.at and config.growth.data is not None:
        other = open_data(config.growth.data, vocab=config.model.vocab, verify=verify)
        if other.tokenizer.fingerprint != dataset.tokenizer.fingerprint:
            raise InputError(
                f"--growth.data {config.growth.data}: its tokeniser is {other.tokenizer.fingerprint[:16]}, that of "
                f"{config.data.source} {dataset.tokenizer.fingerprint[:16]}; prepare it with --tokenizer of the first"
            )
        sources.append(build_source(config, config.growth.data, other))
    return dataset, sources


def _pair_source(config: TrainConfig, name: str, dataset: Dataset) -> Source:
    """Preference pairs. InputError where the config has no policy to start from, or something that pairs exclude."""
    if config.run.start is None:
        raise InputError("--preference.pairs: want --run.start, the trained model that is the policy and the reference")
    if config.growth.at or config.data.mode != "packed":
        raise InputError("--preference.pairs: excludes --growth and --data.mode stream; train in two runs")
    pairs = read_pairs(Path(name), dataset.tokenizer)
    shape = {"rows": config.batch, "window": config.data.window}
    return PairSource(pairs, seed=config.seed, eod=dataset.eod, shared=not config.model.recurrent, where=name, **shape)


def build_source(config: TrainConfig, name: str, dataset: Dataset) -> Source:
    """Rows of the training split as the config asks. InputError when the model cannot hold the data's token ids."""
    if dataset.vocab > config.model.vocab:
        raise InputError(
            f"{name}: its tokeniser has {dataset.vocab} ids, the model {config.model.vocab}; "
            f"set --model.vocab {dataset.vocab} or prepare the data with a smaller vocabulary"
        )
    split, data, lengths = dataset.split("train"), config.data, dataset.tokenizer.byte_lengths()
    if config.model.positions == "learned" and data.window > config.model.context:
        raise InputError(
            f"--data.window {data.window} exceeds --model.context {config.model.context}, the learned positions; "
            "raise the context or shorten the window"
        )
    shape = {"rows": config.batch, "window": data.window, "vocab": dataset.vocab}
    if data.mix:
        return _mixture(config, name, dataset)
    if data.mode == "packed":
        return _packed(config, dataset, "train", config.batch)
    return StreamSource(split, resets=data.document_resets, byte_lengths=lengths, **shape)


def _packed(config: TrainConfig, dataset: Dataset, split: str, rows: int) -> PackedSource:
    """Rows of a split; of the train split of a data set with word times, drawn anew in every epoch."""
    tokenizer, window = dataset.tokenizer, config.data.window
    spoken = read_spoken(dataset) if split == "train" and isinstance(tokenizer, MixedTokenizer) else None
    if spoken is not None:
        assert isinstance(tokenizer, MixedTokenizer)
        documents, how = spoken
        return InterleavedSource(documents, tokenizer, how, rows=rows, window=window, seed=config.seed)
    lengths = tokenizer.byte_lengths()
    shape = {"rows": rows, "window": window, "vocab": dataset.vocab}
    return PackedSource(dataset.split(split), seed=config.seed, byte_lengths=lengths, **shape)


def _mixture(config: TrainConfig, name: str, dataset: Dataset) -> MixtureSource:
    """Rows of several splits in given shares. InputError for what is no share, or no split."""
    if config.data.mode != "packed":
        raise InputError("--data.mix: want --data.mode packed; streams are not mixed")
    shares: dict[str, float] = {}
    for each in config.data.mix:
        split, _, share = each.partition("=")
        try:
            shares[split] = float(share)
        except ValueError as error:
            raise InputError(f"--data.mix {each!r}: want SPLIT=SHARE, as in text=0.2") from error
    sources = {split: _packed(config, dataset, split, 1) for split in shares}
    try:
        return MixtureSource(sources, shares, config.batch)
    except ValueError as error:
        raise InputError(f"--data.mix of {name}: {error}") from error


def describe_data(source: Source, plan: Plan) -> str:
    """How much text there is, how full its rows are, and how often the budget reads it."""
    if isinstance(source, PairSource):
        return (
            f"data        {len(source.pairs):,} preference pairs{', prompts shared' if source.shared else ''}; "
            f"rows {source.fill:.2%} full; the budget reads them {source.epoch(plan.steps):.2f} times"
        )
    if isinstance(source, MixtureSource):
        read = source.epochs(plan.steps)
        parts = (
            f"{name} {share:.1%} of the rows, read {read[name]:.2f} times" for name, share in source.shares.items()
        )
        return f"data        {'; '.join(parts)}; rows {source.fill:.2%} full"
    split = source.split
    kind = "packed" if isinstance(source, PackedSource) else "stream"
    return (
        f"data        {split.documents:,} training documents, {split.tokens:,} tokens; "
        f"{kind} rows {source.fill:.2%} full; the budget reads it {source.epoch(plan.steps):.2f} times"
    )


def load_start(path: Path, config: TrainConfig, dataset: Dataset) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Weights (fp32 where the checkpoint has master copies) and, if the config asks, optimiser tensors to start from.

    InputError when the checkpoint is of another model or tokeniser, or has no optimiser state that was asked for.
    """
    found = checkpoint.find(path)
    facts = found.trainer
    if wrong := differences(facts["model"], to_table(config.model), ignore=("mixer.impl", "impl")):
        raise InputError(f"--run.start {path}: holds another model:{wrong}\n  use the checkpoint's values")
    if facts["tokenizer"] and facts["tokenizer"] != dataset.tokenizer.fingerprint:
        raise InputError(
            f"--run.start {path}: was trained with tokeniser {facts['tokenizer'][:16]}, the data set has "
            f"{dataset.tokenizer.fingerprint[:16]}; prepare the data with --tokenizer of the checkpoint's data set"
        )
    if not config.run.start_optimizer:
        return found.weights, {}
    if all(key.startswith("master.") for key in found.optimizer):
        raise InputError(f"--run.start-optimizer: {path} holds no optimiser state; leave it out")
    return found.weights, found.optimizer
