"""Causal self-attention with grouped queries.

Letters: B rows, T steps, S cached and new steps, D width, H query heads, G key/value heads, K head width.
"""

import torch
from torch import Tensor, nn

from hotplate.kernels.attention import attention
from hotplate.model.axes import Axes, Linear
from hotplate.model.config import ModelConfig
from hotplate.model.rotary import rotate
from hotplate.model.rows import Rows
from hotplate.model.state import LayerState

SCALED_QUERY = ("head_width", -0.5)  # n copies of a head make q.k / sqrt(n K) sqrt(n) times as large


class Attention(nn.Module):
    """One projection to queries, keys and values; attention within documents; one projection back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mixer, width = config.mixer, config.width
        self.mixer = mixer
        keys = mixer.groups * mixer.head_width
        self.qkv = Linear(
            "residual",
            width,
            ("heads", "kv_heads", "kv_heads"),
            (mixer.width, keys, keys),
            bias=config.bias != "none",
            powers=() if mixer.qk_norm else (SCALED_QUERY, None, None),
        )
        self.out = Linear("heads", mixer.width, "residual", (width,), bias=config.bias == "all")
        if mixer.qk_norm:
            self.q_norm = HeadNorm(mixer.head_width, config.norm_eps, powers=(SCALED_QUERY,))
            self.k_norm = HeadNorm(mixer.head_width, config.norm_eps)

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> update [B, T, D]. A state with `k` and `v` [B, S, G, K] is a cache: it grows by T steps."""
        B, T, _ = x.shape
        heads, groups, K = self.mixer.heads, self.mixer.groups, self.mixer.head_width
        q, k, v = self.qkv(x).view(B, T, heads + 2 * groups, K).split([heads, groups, groups], dim=2)
        if self.mixer.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rows.rotation is not None:
            q, k = rotate(q, rows.rotation), rotate(k, rows.rotation)
        if "k" in state:
            k, v = torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1)
            state = {"k": k, "v": v}
        y = attention(q, k, v, rows.documents, impl=self.mixer.impl)
        return self.out(y.reshape(B, T, heads * K)), state

    def initial_state(self, rows: int, device: torch.device, dtype: torch.dtype, cache: bool) -> LayerState:
        """Nothing in training; an empty cache for sampling."""
        if not cache:
            return {}
        empty = torch.zeros(rows, 0, self.mixer.groups, self.mixer.head_width, device=device, dtype=dtype)
        return {"k": empty, "v": empty}


class HeadNorm(nn.RMSNorm):
    """RMSNorm over the features of each head, one weight for all heads."""

    def __init__(self, head_width: int, eps: float, powers: tuple[tuple[str, float] | None, ...] = ()) -> None:
        super().__init__(head_width, eps=eps)
        self.axes = {"weight": Axes(("head_width",), powers=powers)}
