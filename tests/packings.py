"""Queries, keys and values, and how documents lie in them, for the tests of attention's forms.

Letters: B rows, T queries, S keys of a row, H query heads, Hkv key heads, K head width.
"""

import torch
from torch import Tensor

FEATURES = [{"window": 3}, {"softcap": 2.0}, {"window": 4, "softcap": 1.5}]
SHAPES = [  # B, T, S, H, Hkv, K
    (1, 1, 1, 1, 1, 1),
    (2, 33, 33, 4, 4, 16),
    (3, 65, 65, 6, 2, 8),
    (1, 1, 40, 4, 1, 24),
    (2, 7, 50, 4, 2, 32),
]


def inputs(B: int, T: int, S: int, H: int, Hkv: int, K: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(B, T, H, K).to(dtype),
        torch.randn(B, S, Hkv, K).to(dtype),
        torch.randn(B, S, Hkv, K).to(dtype),
    ]


def documents(*edges: int) -> Tensor:
    return torch.tensor(edges, dtype=torch.int32)


PACKED = {  # over B * T = 12
    "rows": documents(0, 6, 12),
    "one token each": documents(*range(13)),
    "uneven": documents(0, 1, 6, 9, 12),
    "empty anywhere": documents(0, 0, 2, 2, 6, 6, 9, 12, 12, 12),
    "row edge not listed": documents(0, 4, 12),
}
