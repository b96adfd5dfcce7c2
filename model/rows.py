"""Where documents lie in a batch of rows: what every mixer of a stack is told, once."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hotplate.kernels.attention import Layout
from hotplate.kernels.rotary import Rotation


class Forks(NamedTuple):
    """Sequences with a common beginning that is in the row once: what attention sees is longer than the row."""

    spread: Tensor  # int64 [B, A], place in the flattened [B * T] of each step that attention sees
    gather: Tensor  # int64 [B, T], place in the flattened [B * A] of each step's output

    def unfold(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, A, ...]."""
        return x.flatten(0, 1).index_select(0, self.spread.flatten()).unflatten(0, self.spread.shape)

    def fold(self, y: Tensor) -> Tensor:
        """[B, A, ...] -> [B, T, ...]; a shared step takes its first copy's output, all copies' being equal."""
        return y.flatten(0, 1).index_select(0, self.gather.flatten()).unflatten(0, self.gather.shape)


@dataclass(frozen=True)
class Rows:
    """Shared by all layers of one forward pass."""

    resets: Tensor | None = None  # bool [B, T], recurrent state is zeroed before this step
    documents: Tensor | Layout | None = None  # int32 [S + 1] over the flattened [B * T]; None: a row is one document
    rotation: Rotation | None = None  # cosine and sine for rotary positions
    forks: Forks | None = None  # `documents` is then over what attention sees
