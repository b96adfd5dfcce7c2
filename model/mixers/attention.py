"""Causal self-attention with grouped queries.

Letters: B rows, T steps, S cached and new steps, D width, H query heads, G key/value heads, K head width.
"""

import torch
from torch import Tensor, nn

from hotplate.kernels.attention import attention, self_attention
from hotplate.kernels.rotary import cut_heads
from hotplate.model.axes import Linear
from hotplate.model.config import ModelConfig
from hotplate.model.norm import HeadNorm
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
            self.q_norm = HeadNorm(mixer.head_width, powers=(SCALED_QUERY,))
            self.k_norm = HeadNorm(mixer.head_width)
        self.eps, self.impl = config.norm_eps, config.impl

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> update [B, T, D]. A state with `k` and `v` [B, S, G, K] is a cache: it grows by T steps."""
        B, T, _ = x.shape
        heads, groups, K = self.mixer.heads, self.mixer.groups, self.mixer.head_width
        norms = (self.q_norm.weight, self.k_norm.weight) if self.mixer.qk_norm else ()
        if not (norms or rows.rotation or "k" in state or rows.forks is not None):
            qkv, bias = self.qkv.before(x, heads + 2 * groups, K)
            y = self_attention(qkv, heads, rows.documents, bias=bias, impl=self.mixer.impl)
            return self.out(y.reshape(B, T, heads * K)), state
        qkv = self.qkv(x).view(B, T, heads + 2 * groups, K)
        q, k, v = cut_heads(qkv, heads, rows.rotation, *norms, eps=self.eps, impl=self.impl)
        if "k" in state:
            k, v = torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1)
            state = {"k": k, "v": v}
        if rows.forks is not None:
            q, k, v = (rows.forks.unfold(x) for x in (q, k, v))
        y = attention(q, k, v, rows.documents, impl=self.mixer.impl)
        if rows.forks is not None:
            y = rows.forks.fold(y)
        return self.out(y.reshape(B, T, heads * K)), state

    def initial_state(self, rows: int, device: torch.device, dtype: torch.dtype, cache: bool) -> LayerState:
        """Nothing in training; an empty cache for sampling."""
        if not cache:
            return {}
        empty = torch.zeros(rows, 0, self.mixer.groups, self.mixer.head_width, device=device, dtype=dtype)
        return {"k": empty, "v": empty}
