"""What a model carries from one window to the next: recurrent state and key/value cache behind one type.

Letters: B rows, S cached steps, H heads, K head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LayerState = dict[str, Tensor]  # every tensor's first axis is the row


@dataclass(frozen=True)
class State:
    """One dictionary of tensors per layer, rows first. A recurrent layer holds `c` (and `h`); an attention layer
    holds nothing in training and `k`, `v` [B, S, H, K] when it caches."""

    layers: tuple[LayerState, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        return State(tuple({name: function(x) for name, x in layer.items()} for layer in self.layers))

    def detach(self) -> "State":
        """The same values, cut from the graph: the border of truncated back-propagation."""
        return self.map(Tensor.detach)

    def select(self, rows: Tensor) -> "State":
        """Rows [N] (int64) of the state, in that order."""
        return self.map(lambda x: x.index_select(0, rows))

    def reset(self, rows: Tensor) -> "State":
        """Zero the rows where `rows` (bool [B]) is true."""
        return self.map(lambda x: x.masked_fill(rows.view(-1, *[1] * (x.dim() - 1)), 0))

    @staticmethod
    def concatenate(states: "list[State]") -> "State":
        """Stack the rows of several states."""
        layers = zip(*(state.layers for state in states), strict=True)
        return State(
            tuple({name: torch.cat([layer[name] for layer in parts]) for name in parts[0]} for parts in layers)
        )

    def to_dict(self) -> dict[str, Tensor]:
        """Flat names for a checkpoint: `layer.name`."""
        return {f"{i}.{name}": x.contiguous() for i, layer in enumerate(self.layers) for name, x in layer.items()}

    @staticmethod
    def from_dict(tensors: Mapping[str, Tensor], layers: int) -> "State":
        """The inverse of `to_dict`."""
        parts: list[LayerState] = [{} for _ in range(layers)]
        for key, x in tensors.items():
            index, name = key.split(".", 1)
            parts[int(index)][name] = x
        return State(tuple(parts))
