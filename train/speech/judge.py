"""What a model says, judged as text: perplexity of transcripts under a language model, and their repetition.

GenPPL is exp of the mean over files of each file's mean negative log-likelihood per token; auto-BLEU-2 the mean over
files of the share of repeated bigrams. Source: Lakhotia et al. 2021; Maimon et al. 2025, section 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotplate.train.data.prepare import open_data
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import audio_files, read_audio
from hotplate.train.speech.likelihood import sequence_scores
from hotplate.train.speech.recognise import SAMPLE_RATE, open_recogniser
from hotplate.train.speech.repetition import auto_bleu, text_tokens
from hotplate.train.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who listens, and who reads."""

    language_model: str
    """run or checkpoint folder of a model of text, with the data set that it was trained on"""
    recogniser: str = "pocketsphinx"
    """pocketsphinx, or command:PROGRAM, which is given a wav file and prints its text"""
    resample: bool = False
    """convert files of another sample rate than 16 kHz; without it they are errors"""
    lower: bool = True
    """read the transcripts in lower case, as recognisers write them"""


def text_losses(run: Path, texts: list[str]) -> list[float]:
    """Mean nats per token of each text under a trained model, from the start of a document.

    InputError for a model of units, and for an empty text.
    """
    trained = load_trained(run, torch.device("cpu"))
    dataset = open_data(trained.config.data.source, vocab=trained.config.model.vocab, verify="header")
    trained.check_tokenizer(dataset)
    if not isinstance(dataset.tokenizer, Tokenizer):
        raise InputError(f"--language-model {run}: a model of {dataset.tokenizer.path.name}, want one of text")
    sequences = [np.array([dataset.eod, *dataset.tokenizer.encode(text).tolist()]) for text in texts]
    if empty := [text for text, ids in zip(texts, sequences, strict=True) if len(ids) < 2]:
        raise InputError(f"a text without tokens: {empty[0]!r}")
    return [-score for score in sequence_scores(trained.model, sequences)]


def judge(
    inputs: tuple[str, ...], config: JudgeConfig, progress: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """GenPPL and auto-BLEU-2 over audio files, with every transcript. Files in which nothing was understood and files
    that cannot be read are listed and left out of the means; InputError when none is left.
    """
    recogniser = open_recogniser(config.recogniser)
    texts: dict[str, str] = {}
    failed: list[str] = []
    for number, (name, path) in enumerate(audio_files(inputs), 1):
        try:
            text = recogniser.transcribe(read_audio(path, SAMPLE_RATE, config.resample))
        except InputError as error:
            failed.append(str(error))
            continue
        texts[name] = text.lower() if config.lower else text
        progress(number)
    understood = {name: text for name, text in texts.items() if text}
    if not understood:
        raise InputError(failed[0] if failed else f"{', '.join(inputs)}: nothing was understood in any file")
    losses = text_losses(Path(config.language_model), list(understood.values()))
    repetition = [auto_bleu(text_tokens(text)) for text in understood.values()]
    return {
        "recogniser": config.recogniser,
        "language_model": config.language_model,
        "files": len(understood),
        "perplexity": math.exp(float(np.mean(losses))),
        "auto_bleu2": float(np.mean(repetition)),
        "nothing_understood": sorted(set(texts) - set(understood)),
        "failed": failed,
        "transcripts": {
            name: {"text": text, "loss": loss, "auto_bleu2": repeated}
            for (name, text), loss, repeated in zip(understood.items(), losses, repetition, strict=True)
        },
    }
