"""The norm with torch's operations."""

from collections.abc import Sequence

import torch
from torch import Tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See op.py."""
    if tensors[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(list(tensors))
    # In fp32 torch adds a CPU tensor's squares one after another: some 1e-4 off for a large table.
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors]))
