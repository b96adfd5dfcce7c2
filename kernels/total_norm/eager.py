"""The norm with torch's operations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See op.py."""
    if tensors[0].device.type != "cpu":
        wide = state_dtype(tensors[0].dtype)  # or the norm of each tensor would be rounded to 16 bits
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors), 2, wide)))
    # In fp32 torch adds a CPU tensor's squares one after another: some 1e-4 off for a large table.
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors]))
