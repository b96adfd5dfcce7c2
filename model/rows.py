"""Where documents lie in a batch of rows: what every mixer of a stack is told, once."""

from dataclasses import dataclass

from torch import Tensor

from hotplate.kernels.attention import Layout
from hotplate.kernels.rotary import Rotation


@dataclass(frozen=True)
class Rows:
    """Shared by all layers of one forward pass."""

    resets: Tensor | None = None  # bool [B, T], recurrent state is zeroed before this step
    documents: Tensor | Layout | None = None  # int32 [S + 1] over the flattened [B * T]; None: a row is one document
    rotation: Rotation | None = None  # cosine and sine for rotary positions
