"""`hotplate coordinates MODEL [flags]`: does a learning rate carry over widths? Activations' movement, both forms."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from hotplate.train import console, settings
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError
from hotplate.train.science.coordinates import check

DEFAULT = "gpt-nano"


@dataclass(frozen=True, kw_only=True)
class CoordinatesConfig:
    """Train the model for a few updates at several widths, in the standard parametrisation and under muP."""

    widths: tuple[int, ...] = (128, 256, 512)
    """widths of the residual stream; heads and MLP grow alike"""
    base: int | None = None
    """muP's base width; none = the first of the widths"""
    steps: int = 4
    """updates on one batch of random tokens"""
    seeds: int = 2
    """initial weights to average over"""
    threads: int | None = None
    """cpu threads; none = as torch chooses"""
    json: str | None = None
    """also write the numbers to this file"""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-2))


def main(arguments: Sequence[str]) -> int:
    """`hotplate coordinates qlstm-nano --widths 64 128 256`."""
    preset, flags = settings.split_preset(arguments, DEFAULT)
    config = settings.parse(CoordinatesConfig(), flags, f"hotplate coordinates {preset}")
    model = replace(settings.load_preset(preset).model, vocab=256, init_std=0.02)
    if len(set(config.widths)) < 2 or min(config.widths) < 1 or min(config.steps, config.seeds) < 1:
        raise InputError(f"--widths {config.widths}: want two or more positive widths, and steps and seeds >= 1")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    record = {}
    for name, base in (("standard parametrisation", None), ("muP", config.base or config.widths[0])):
        found = check(model, config.optimizer, config.widths, base, config.steps, config.seeds)
        rows = [
            [layer, *(f"{value:.3g}" for value in found.moved[layer]), f"{found.exponent(layer):+.2f}"]
            for layer in found.moved
        ]
        title = f"{preset}, {name}: mean |movement| after {config.steps} updates, by width"
        console.table(title, ["layer", *map(str, config.widths), "exponent"], rows)
        record[name] = asdict(found) | {"exponents": {layer: found.exponent(layer) for layer in found.moved}}
    if config.json:
        Path(config.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0
