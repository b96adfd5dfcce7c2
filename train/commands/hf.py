"""`hotplate hf import DIR -o START` and `hotplate hf export RUN -o DIR`: Hugging Face checkpoints in and out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hotplate.model import hf
from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.hf.names import Family
from hotplate.train import checkpoint, settings
from hotplate.train.config import TrainConfig
from hotplate.train.console import say
from hotplate.train.errors import InputError

Out = Annotated[str, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True)
class Import:
    """Make a checkpoint to train, grow or evaluate from a folder of config.json and safetensors."""

    folder: tyro.conf.Positional[str]
    """Llama, Qwen2, OLMo, GPT-NeoX (Pythia) or OPT, as `transformers` saves it"""
    out: Out
    """new checkpoint folder; `hotplate train OUT`, `hotplate grow OUT` and `hotplate evaluate OUT` read it"""
    vocab: int | None = None
    """another number of token ids, for a model of other tokens (speech units: 502) on the text model's body"""
    rows: Literal["slice", "random"] = "slice"
    """with --vocab: keep the first rows of embedding and head, or draw them anew"""
    rope_theta: float | None = None
    """another base wavelength of rotary positions; none = the checkpoint's"""
    seed: int = 0
    """of drawn rows"""


@dataclass(frozen=True)
class Export:
    """Write a trained model as a folder that `transformers` loads."""

    run: tyro.conf.Positional[str]
    """run or checkpoint folder"""
    out: Out
    """new folder"""
    family: Family
    """llama, qwen2, olmo, gpt_neox or opt: one whose form the model has"""


Command = Annotated[Import, tyro.conf.subcommand("import")] | Annotated[Export, tyro.conf.subcommand("export")]


def main(arguments: Sequence[str]) -> int:
    """Run one subcommand."""
    command = tyro.cli(Command, prog="hotplate hf", args=list(arguments))  # type: ignore[call-overload]
    out = Path(command.out)
    if out.exists():
        raise InputError(f"{out}: exists; choose another -o, nothing is overwritten")
    try:
        if isinstance(command, Import):
            _import(command, out)
        else:
            _export(Path(command.run), out, command.family)
    except ValueError as error:
        raise InputError(f"hotplate hf: {error}") from error
    except OSError as error:
        raise InputError(f"{out}: not written: {error}; free some space or choose another -o") from error
    return 0


def _import(command: Import, out: Path) -> None:
    folder = Path(command.folder)
    model, weights = hf.load(folder)
    text = command.vocab is None
    if not text or command.rope_theta is not None:
        vocab = model.vocab if command.vocab is None else command.vocab
        model, weights = hf.with_vocabulary(model, weights, vocab, command.rows, command.seed, command.rope_theta)
    tokenizer = folder / "tokenizer.json"
    known = text and tokenizer.is_file()
    config = TrainConfig(model=model)
    config = replace(config, data=replace(config.data, window=min(config.data.window, model.context)))
    trainer = {
        "step": 0,
        "data": "",
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest() if known else "",
        "config": settings.to_table(config),
        "model": settings.to_table(model),
        "imported": str(folder),
    }
    checkpoint.write(out, {"model": weights, "optimizer": {}, "state": {}}, trainer)
    say(f"{out}: {cost(model, model.context).parameters:,} parameters from {folder}")
    prepare = f"`hotplate data prepare --tokenizer {tokenizer} ...`" if known else "a tokeniser of these ids"
    say(f"prepare data with {prepare}, then `hotplate train {out} --data.source SET --budget ...`")


def _export(run: Path, out: Path, family: Family) -> None:
    found = checkpoint.find(run)
    model = settings.merge(ModelConfig(), found.trainer["model"], f"{run}: trainer.json: model")
    weights = dict(found.weights)
    hf.save(out, model, weights, family)
    say(f"{out}: {family}, {cost(model, model.context).parameters:,} parameters from {run}")
