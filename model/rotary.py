"""Rotary positions (Su et al. 2021), in the half-split layout of GPT-NeoX and Llama.

Letters: B rows, T steps, H heads, K head width, R rotating features of it.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, width: int, theta: float) -> Rotation:
    """Cosine and sine [B, T, 1, R/2] in fp32 of angle position * theta^(-2j/R), for positions int [B, T] and R = width
    rotating features of a head."""
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-pairs / width)
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (x[j], x[j + R/2]), j < R/2, of x [B, T, H, K] by its angle; features from R on stay. Same dtype
    out, arithmetic in fp32 or wider."""
    cos, sin = by
    R = 2 * cos.shape[-1]
    first, second = x[..., :R].to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    return turned if x.shape[-1] == R else torch.cat([turned, x[..., R:]], dim=-1)
