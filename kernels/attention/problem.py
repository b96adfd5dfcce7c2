"""What one call of attention asks for: the facts by which a backend says whether it can serve.

Letters: B rows, T queries, S keys of a row, H query heads, Hkv key heads, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.kernels.attention.tiles import Layout


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Shapes, dtype, device and features; nothing that needs a look at a tensor's values."""

    B: int
    T: int
    S: int
    H: int
    Hkv: int
    K: int
    dtype: torch.dtype
    device: torch.device
    packed: bool  # documents within rows
    window: bool = False
    softcap: bool = False
    lse: bool = False
    gradient: bool = False
    positive_scale: bool = True

    def __str__(self) -> str:
        features = [name for name in ("packed", "window", "softcap", "lse", "gradient") if getattr(self, name)]
        return (
            f"q [{self.B}, {self.T}, {self.H}, {self.K}], k and v [{self.B}, {self.S}, {self.Hkv}, {self.K}] "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {', '.join(features) or 'plain'}"
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """The operands. cu_seqlens is as the caller gave it; a Layout where the caller made one."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, S, Hkv, K]
    v: Tensor  # [B, S, Hkv, K]
    documents: Tensor | Layout | None
    scale: float
    window: int | None
    softcap: float | None
    lse: bool  # whether it is asked for
    qkv: Tensor | None = None  # [B, T, H + 2 Hkv, K], where q, k and v are views of its heads in this order
    bias: Tensor | None = None  # [H + 2 Hkv, K], which qkv has already: for its gradient alone

    @property
    def cu_seqlens(self) -> Tensor | None:
        return self.documents.cu_seqlens if isinstance(self.documents, Layout) else self.documents

    def problem(self) -> Problem:
        (B, T, H, K), (S, Hkv) = self.q.shape, self.k.shape[1:3]
        leaves = (self.q, self.k, self.v, self.bias)
        return Problem(
            B=B,
            T=T,
            S=S,
            H=H,
            Hkv=Hkv,
            K=K,
            dtype=self.q.dtype,
            device=self.q.device,
            packed=self.cu_seqlens is not None,
            window=self.window is not None,
            softcap=self.softcap is not None,
            lse=self.lse,
            gradient=torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves),
            positive_scale=self.scale > 0,
        )


Result = tuple[Tensor, Tensor | None]  # out [B, T, H, K]; lse [B, H, T] in nats where asked for
