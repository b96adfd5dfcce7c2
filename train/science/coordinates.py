"""The coordinate check of muP: how far each activation moves in a few updates, over widths.

A model is made at several widths (heads and MLP grow with it, the head width stays), trained for some updates on one
batch of random tokens, and seen before and after. `moved` is the mean |x_after - x_before| of a layer's output. Under
muP it is the same at every width; in the standard parametrisation it grows, so a learning rate found at a small width
is too large at a large one. `exponent` is the slope of log moved over log width: 0 is flat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch


@dataclass(frozen=True)
class Check:
    """`moved[layer]` [widths], in the order of the network."""

    widths: tuple[int, ...]
    moved: Mapping[str, tuple[float, ...]]

    def exponent(self, layer: str) -> float:
        """Slope of log moved over log width."""
        return float(np.polyfit(np.log(self.widths), np.log(self.moved[layer]), 1)[0])


def at_width(model: ModelConfig, width: int, base: int | None) -> ModelConfig:
    """`model` with residual stream, MLP and number of heads scaled to `width`. InputError when they do not divide."""
    heads, kv_heads = model.mixer.heads, model.mixer.kv_heads
    scaled = {"mixer.heads": heads * width, "mixer.kv_heads": (kv_heads or heads) * width, "ffn": model.ffn * width}
    for name, value in scaled.items():
        if value % model.width:
            raise InputError(
                f"--widths {width}: {name} would be {value / model.width:g}; want widths that scale the model's "
                f"{model.width} by a factor that keeps heads ({heads}) and ffn ({model.ffn}) whole"
            )
    mixer = replace(
        model.mixer,
        heads=heads * width // model.width,
        kv_heads=None if kv_heads is None else kv_heads * width // model.width,
    )
    return replace(model, width=width, ffn=model.ffn * width // model.width, mixer=mixer, mup_base=base)


def check(
    model: ModelConfig, optimizer: OptimizerConfig, widths: Sequence[int], base: int | None, steps: int, seeds: int
) -> Check:
    """Movement of every layer at every width, averaged over seeds; `base` None is the standard parametrisation."""
    configs = [at_width(model, width, base) for width in widths]
    columns = [_mean([_moved(config, optimizer, steps, seed) for seed in range(seeds)]) for config in configs]
    return Check(tuple(widths), {layer: tuple(column[layer] for column in columns) for layer in columns[0]})


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {layer: sum(each[layer] for each in found) / len(found) for layer in found[0]}


def _moved(config: ModelConfig, optimizer: OptimizerConfig, steps: int, seed: int) -> dict[str, float]:
    cpu = torch.device("cpu")
    model = LanguageModel.build(config, seed)
    batch = random_batch(config, 4, min(32, config.context), cpu, seed)
    step = Step(model, Optimizer(model, optimizer), Ranks(0, 1, cpu), "fp32", batch.tokens.numel())
    before = activations(model, batch)
    states = [model.initial_state(4) if batch.slots is not None else None]
    for _ in range(steps):
        _, states = step([batch], states, optimizer.lr)
    after = activations(model, batch)
    return {layer: float((after[layer] - before[layer]).abs().mean()) for layer in before}


@torch.no_grad()
def activations(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """Outputs of the embedding, of every mixer and MLP, and the logits, on `batch` from zero state."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[name] = (output if isinstance(output, Tensor) else output[0]).clone()

        return hook

    watched = [("embedding", model.embedding)]
    for number, block in enumerate(model.blocks):
        watched += [(f"mixer {number}", block.mixer), (f"mlp {number}", block.mlp)]  # type: ignore[list-item]
    handles = [module.register_forward_hook(keep(name)) for name, module in watched]
    try:
        features, _ = model.hidden(batch)
    finally:
        for handle in handles:
            handle.remove()
    seen["embedding"] = seen["embedding"] * model.config.token_multiplier
    seen["logits"] = model.logits(features)
    return seen
