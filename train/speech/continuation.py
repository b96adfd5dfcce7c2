"""Spoken prompts continued by a model: seconds of a file to units, more units, and all of them back to sound."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hotplate.model.generate import generate
from hotplate.train.data.units import BOUNDARY, FIRST_UNIT, PAD
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import audio_files, read_audio, write_audio
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.evaluation import open_model

Speak = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]  # units, durations -> waveform, sample rate


@dataclass(frozen=True, kw_only=True)
class ContinueConfig:
    """How prompts are cut and continued; the numbers are those of Maimon et al. 2025, table 6."""

    seconds: float = 3.0
    """of a file, from its start, that the model hears; shorter files are heard whole"""
    count: int | None = None
    """files, in the order of their names; none = all"""
    tokens: int = 150
    """longest continuation; it ends early at the boundary"""
    temperature: float = 0.8
    top_k: int | None = 25
    repetition_penalty: float = 1.1
    frames: int = 1
    """duration of each new unit"""
    resample: bool = False
    """convert files of another sample rate; without it they are errors"""
    seed: int = 0
    run_device: str = "cpu"
    """where the language model runs: cpu or cuda"""


def continue_speech(
    run: Path, inputs: tuple[str, ...], out: Path, encoder: UnitEncoder, speak: Speak, config: ContinueConfig
) -> tuple[int, list[str]]:
    """Write NAME.wav (prompt and continuation) and NAME.json (their units) for every prompt: how many, and why others
    were left out. InputError: a model of other units, or no usable prompt.
    """
    trained = open_model(run, encoder, config.run_device)
    device = trained.model.embedding.weight.device
    allowed = torch.arange(trained.model.config.vocab, device=device) != PAD
    rate, made, failed = encoder.features.sample_rate, 0, []
    for number, (name, path) in enumerate(audio_files(inputs)):
        if config.count is not None and made == config.count:
            break
        try:
            wave = read_audio(path, rate, config.resample)[: max(encoder.hop, round(config.seconds * rate))]
            units, durations = encoder.encode_one(wave)
        except InputError as error:
            failed.append(str(error))
            continue
        ids = torch.tensor([[BOUNDARY, *(units.astype(int) + FIRST_UNIT).tolist()]], device=device)
        drawn = generate(
            trained.model,
            ids,
            config.tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            allowed=allowed,
            generator=torch.Generator(device).manual_seed(config.seed + number),
        )[0].tolist()
        new = np.array(drawn[: drawn.index(BOUNDARY)] if BOUNDARY in drawn else drawn, np.int64) - FIRST_UNIT
        every = np.concatenate([units.astype(np.int64), new])
        lengths = np.concatenate([durations.astype(np.int64), np.full(len(new), config.frames)])
        sound, sound_rate = speak(every, lengths)
        stem = out / Path(name).with_suffix("")
        write_audio(stem.with_suffix(".wav"), sound, sound_rate)
        facts = {"prompt": units.tolist(), "continuation": new.tolist(), "durations": lengths.tolist()}
        stem.with_suffix(".json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        made += 1
    if not made:
        raise InputError(failed[0] if failed else f"{', '.join(inputs)}: no prompts")
    return made, failed
