"""Rotary positions (Su et al. 2021), in the half-split layout of GPT-NeoX and Llama.

Letters: B rows, T steps, H heads, K head width.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """Cosine and sine [B, T, 1, K/2] in fp32 of angle position * theta^(-2j/K), for positions int [B, T]."""
    pairs = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-pairs / head_width)
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (x[j], x[j + K/2]) of x [B, T, H, K] by its angle; same dtype out, arithmetic in fp32 or wider."""
    cos, sin = by
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
