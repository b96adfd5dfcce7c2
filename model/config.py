"""What a language model is made of: frozen configs, checked when made."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The part of a block that moves information along time."""

    kind: Literal["attention", "qlstm", "lstm"] = "attention"
    """attention, qlstm (gates see the input only) or lstm (gates also see h of the previous step)"""
    heads: int = 8
    """heads; a recurrent mixer's state width is heads * head_width"""
    head_width: int = 32
    """features per head"""
    kv_heads: int | None = None
    """attention: key/value heads shared by groups of query heads; none = heads"""
    qk_norm: bool = False
    """attention: RMSNorm over each query and key head before the rotation"""
    rope_theta: float = 10_000.0
    """attention: base wavelength of rotary positions"""
    coupled: bool = False
    """qlstm: input gate = 1 - forget gate, one projection fewer"""
    shared_recurrent: bool = False
    """lstm: one recurrent matrix per gate for all heads, instead of one per head"""
    forget_offset: float = 1.0
    """recurrent: added to the forget gate's pre-activation"""
    impl: Literal["auto", "eager", "native", "triton", "reference"] = "auto"
    """kernel implementation: auto = the fastest that this device and machine have; a name never falls back"""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_width < 1:
            raise ValueError(f"mixer: want heads and head_width >= 1, got {self.heads} and {self.head_width}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(
                f"mixer: want kv_heads that divides heads {self.heads}, got {self.kv_heads}; "
                "grouped-query attention gives each key/value head the same number of query heads"
            )

    @property
    def width(self) -> int:
        """Features that the mixer works on: heads * head_width."""
        return self.heads * self.head_width

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A residual stack of (norm, mixer) and (norm, MLP) between an embedding and a language-model head."""

    layers: int = 4
    """blocks"""
    width: int = 512
    """features of the residual stream"""
    ffn: int = 2048
    """hidden features of the MLP"""
    vocab: int = 16_384
    """token ids; a built-in corpus is cut with a tokeniser of this size, a prepared one must not have more"""
    context: int = 512
    """longest window a model with learned positions can see; sampling keeps at most this many tokens"""
    mixer: MixerConfig = field(default_factory=MixerConfig)
    mlp: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """gelu (tanh form), swiglu (gated) or relu2 (squared ReLU)"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary", "none"] = "learned"
    bias: Literal["all", "qkv", "none"] = "all"
    """which projections carry a bias: all, only query/key/value, or none"""
    tied: bool = False
    """head shares the embedding's matrix"""
    embedding_scale: bool = True
    """multiply the token embedding by sqrt(width)"""
    impl: Literal["auto", "eager", "native", "triton", "reference"] = "auto"
    """kernels of norms, MLP and rotary positions: auto = the fastest that this device and machine have"""
    init_std: float = 0.02
    """standard deviation of all matrices; the MLP's second one is divided by sqrt(2 * layers)"""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("layers", "width", "ffn", "vocab", "context")}
        if bad := {name: value for name, value in sizes.items() if value < 1}:
            raise ValueError(f"model: want sizes >= 1, got {bad}")
        if self.positions == "rotary" and self.mixer.head_width % 2:
            raise ValueError(f"model: want an even head_width for rotary positions, got {self.mixer.head_width}")
        if self.positions == "rotary" and self.mixer.kind != "attention":
            raise ValueError(f"model: rotary positions need mixer.kind attention, got {self.mixer.kind}; use none")

    @property
    def recurrent(self) -> bool:
        """Whether the mixer carries a state from window to window."""
        return self.mixer.kind != "attention"
