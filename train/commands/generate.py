"""`hotplate generate RUN [flags]`: sample text from a trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hotplate.model.generate import generate
from hotplate.train import settings
from hotplate.train.console import say
from hotplate.train.data.mixed import MixedTokenizer
from hotplate.train.data.prepare import open_data
from hotplate.train.errors import InputError
from hotplate.train.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How to continue a text."""

    prompt: str = ""
    """text to continue; empty = the start of a document"""
    tokens: int = 200
    """longest continuation; it ends early at the document symbol"""
    temperature: float = 0.8
    """0 = always the likeliest token"""
    top_k: int | None = 50
    """draw among the k likeliest; none = all"""
    repetition_penalty: float = 1.0
    """ids that occurred: logits divided by this above zero, multiplied below; 1 = none"""
    only: Literal["text", "speech"] | None = None
    """models of text and units: draw nothing else; a marker of it follows the prompt where the prompt ends otherwise"""
    samples: int = 1
    """continuations"""
    seed: int = 0
    device: str = "cpu"
    """cpu or cuda"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate generate RUN --prompt "Fellow citizens"`."""
    run, flags = settings.split_preset(arguments, "")
    config = settings.parse(GenerateConfig(), flags, "hotplate generate RUN")
    if not run:
        raise InputError("hotplate generate: want a run folder first; e.g. hotplate generate runs/demo-...")
    device = torch.device(config.device)
    trained = load_trained(Path(run), device)
    dataset = open_data(trained.config.data.source, vocab=trained.config.model.vocab, verify="header")
    trained.check_tokenizer(dataset)
    ids = [dataset.eod, *dataset.tokenizer.encode(config.prompt).tolist()]
    allowed = None
    if config.only is not None:
        if not isinstance(tokenizer := dataset.tokenizer, MixedTokenizer):
            raise InputError(f"--only {config.only}: the model's data set holds no text and units together")
        allowed = torch.from_numpy(tokenizer.allowed(config.only)).to(device)
        ids = tokenizer.turn(ids, config.only)
    prompt = torch.tensor([ids] * config.samples, device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    try:
        drawn = generate(
            trained.model,
            prompt,
            config.tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            allowed=allowed,
            generator=generator,
        )
    except ValueError as error:
        raise InputError(f"hotplate generate: {error}") from error
    for row in drawn.tolist():
        kept = row[: row.index(dataset.eod)] if dataset.eod in row else row
        say(config.prompt + dataset.tokenizer.decode(kept) + "\n")
    return 0
