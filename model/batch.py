"""The one batch that every task trains and evaluates on.

Letters: B rows, T time steps of a row, S document slots, A attention steps (fixed, so that
shapes never change).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with everything the model, the loss and the metrics need to know about them.

    A weight per target is all that padding, document ends, masks and preference pairs need: the loss sums
    `weights * nll`, and nothing downstream knows which task made the batch.
    """

    tokens: Tensor  # int64 [B, T], inputs
    targets: Tensor  # int64 [B, T], a valid id everywhere, also where the weight is 0
    weights: Tensor  # float32 [B, T], 0 = not scored
    positions: Tensor  # int64 [B, T], index within the document (packed) or the row (stream)
    target_bytes: Tensor  # int32 [B, T], UTF-8 bytes that each target decodes to, 0 where the weight is 0
    resets: Tensor | None = None  # bool [B, T], a document starts here; None: state is never reset
    cu_seqlens: Tensor | None = (
        None  # int32 [S + 1] over the flattened [B * T], padded with B * T; None: a row is one document
    )
    slots: Tensor | None = None  # int64 [B], rows of the carried state; None: rows start from zero state
    # Pairs of sequences (chosen, rejected, chosen, ...), for preference optimisation.
    sequences: Tensor | None = None  # int64 [N, L], places of each sequence's scored targets in the flattened [B * T],
    # filled up with B * T
    reference: Tensor | None = None  # float32 [N], log-probability of each sequence under the reference model
    # Sequences that share a beginning, which is in the row once: attention alone reads it once per sequence.
    spread: Tensor | None = None  # int64 [B, A], place in the flattened [B * T] of each step that attention sees;
    # cu_seqlens is then over [B * A]
    gather: Tensor | None = None  # int64 [B, T], place in the flattened [B * A] of each step's attention output

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def _map(self, function) -> "Batch":
        moved = {f.name: function(value) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **moved)

    def by_rows(self, count: int) -> Iterator["Batch"]:
        """Batches of `count` rows, the last of what is left. Rows whose documents and state are their own: no
        cu_seqlens, no slots, nothing of preference pairs."""
        for start in range(0, self.rows, count):
            yield self._map(lambda tensor, start=start: tensor[start : start + count])

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(torch.Tensor.pin_memory)
