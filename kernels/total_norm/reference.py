"""The definition."""

from collections.abc import Sequence

import torch
from torch import Tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See op.py."""
    return torch.cat([x.double().flatten() for x in tensors]).square().sum().sqrt()
