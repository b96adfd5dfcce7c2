"""What the trainer asks of an engine. Methods marked collective are called on all ranks at once."""

import contextlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train.step import Backward, Precision, Updates
from hotplate.train.tensor_files import Piece


class Engine(Protocol):
    """A model, spread over ranks, and what updates it."""

    @property
    def module(self) -> nn.Module:
        """To be called in training: its backward pass also exchanges gradients."""
        ...

    @property
    def optimizer(self) -> Updates: ...

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Backward]:
        """Around forward and backward passes of a micro-batch, `last` of its update: what runs the backward pass."""
        ...

    def pieces(self) -> dict[str, dict[str, Piece]]:
        """What this rank writes of `model` and `optimizer` into a checkpoint: together, all ranks write everything
        once. Collective."""
        ...

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, partly: bool = False) -> None:
        """Weights and optimiser tensors, whole, by name; `partly`: what is missing of these starts anew. Collective."""
        ...

    def whole(self) -> LanguageModel | None:
        """The model with all its weights on the main rank, None on the others. Collective."""
        ...

    def everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All weights in fp32 and all optimiser tensors, on every rank. Collective."""
        ...


def weights_type(precision: Precision) -> torch.dtype:
    """Of the weights that forward passes see."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def empty_model(config: ModelConfig) -> LanguageModel:
    """A model of shapes, without memory."""
    with torch.device("meta"):
        return LanguageModel(config)
