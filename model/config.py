"""What a language model is made of: frozen configs, checked when made."""

import math
from dataclasses import dataclass, field
from typing import Literal

MixerKind = Literal["attention", "qlstm", "lstm", "lstm_dense", "lstm_diagonal"]
RECURRENT_IMPLS = ("auto", "triton", "eager", "reference", "native")
ATTENTION_IMPLS = (
    *RECURRENT_IMPLS,
    *("flash", "fa3", "fa4", "varlen", "cudnn", "flex", "xformers"),
)


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The part of a block that moves information along time."""

    kind: MixerKind = "attention"
    """attention; qlstm (gates see the input only); lstm, lstm_dense, lstm_diagonal (gates also see h of the previous
    step: of their own head, of every feature, of their own feature)"""
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
    rotary_fraction: float = 1.0
    """attention: share of each head's features that rotate: the first ones of both halves"""
    coupled: bool = False
    """qlstm: input gate = 1 - forget gate, one projection fewer"""
    shared_recurrent: bool = False
    """lstm: one recurrent matrix per gate for all heads, instead of one per head"""
    forget_offset: float = 1.0
    """recurrent: added to the forget gate's pre-activation"""
    impl: Literal[
        "auto",
        "triton",
        "eager",
        "reference",
        "native",
        "flash",
        "fa3",
        "fa4",
        "varlen",
        "cudnn",
        "flex",
        "xformers",
    ] = "auto"
    """kernel implementation: auto = the fastest that this device and machine have; a name never falls back.
    flash and all after it are for attention: `hotplate backends` says which are here"""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_width < 1:
            raise ValueError(f"mixer: want heads and head_width >= 1, got {self.heads} and {self.head_width}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(
                f"mixer: want kv_heads that divides heads {self.heads}, got {self.kv_heads}; "
                "grouped-query attention gives each key/value head the same number of query heads"
            )
        for option, kind in (("coupled", "qlstm"), ("shared_recurrent", "lstm")):
            if getattr(self, option) and self.kind != kind:
                raise ValueError(f"mixer: {option} belongs to kind {kind}, got kind {self.kind}; leave it out")
        known = ATTENTION_IMPLS if self.kind == "attention" else RECURRENT_IMPLS
        if self.impl not in known:
            raise ValueError(
                f"mixer: want impl in {list(known)} for kind {self.kind}, got {self.impl!r}; "
                "auto takes the fastest that is here"
            )

    @property
    def width(self) -> int:
        """Features that the mixer works on: heads * head_width."""
        return self.heads * self.head_width

    @property
    def rotary_width(self) -> int:
        """Features of a head that rotate."""
        return int(self.rotary_fraction * self.head_width)

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
    mlp: Literal["gelu", "gelu_erf", "relu", "relu2", "swiglu"] = "gelu"
    """gelu (tanh form), gelu_erf (exact), relu, relu2 (squared) or swiglu (gated)"""
    parallel: bool = False
    """mixer and MLP read the same stream and are added together (GPT-NeoX), instead of one after the other"""
    norm: Literal["layernorm", "plain_layernorm", "rmsnorm"] = "layernorm"
    """layernorm (gain and bias), plain_layernorm (neither; OLMo) or rmsnorm (gain)"""
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary", "none"] = "learned"
    bias: Literal["all", "qkv", "none"] = "all"
    """which projections carry a bias: all, only query/key/value, or none"""
    tied: bool = False
    """head shares the embedding's matrix"""
    embedding_scale: float | None = None
    """multiplier of the token embedding; none = sqrt(width)"""
    logit_scale: float = 1.0
    """multiplier of the logits"""
    impl: Literal["auto", "eager", "native", "triton", "reference"] = "auto"
    """kernels of norms, MLP and rotary positions: auto = the fastest that this device and machine have"""
    init_std: float = 0.02
    """standard deviation of all matrices; the MLP's second one is divided by sqrt(2 * layers)"""
    mup_base: int | None = None
    """width at which the settings were found: others get muP's rates, initial values and logits (model/mup.py); none =
    standard parametrisation"""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("layers", "width", "ffn", "vocab", "context")}
        if bad := {name: value for name, value in sizes.items() if value < 1}:
            raise ValueError(f"model: want sizes >= 1, got {bad}")
        if self.mup_base is not None and self.mup_base < 1:
            raise ValueError(f"model: want mup_base >= 1, got {self.mup_base}")
        if self.positions == "rotary" and (self.mixer.rotary_width % 2 or self.mixer.rotary_width < 2):
            raise ValueError(
                f"model: want an even number of rotating features, got {self.mixer.rotary_width}: "
                f"rotary_fraction {self.mixer.rotary_fraction:g} of head_width {self.mixer.head_width}"
            )
        if self.positions == "rotary" and self.mixer.kind != "attention":
            raise ValueError(f"model: rotary positions need mixer.kind attention, got {self.mixer.kind}; use none")

    @property
    def width_multiplier(self) -> float:
        """muP's m: width over base width; 1 in the standard parametrisation."""
        return 1.0 if self.mup_base is None else self.width / self.mup_base

    @property
    def token_multiplier(self) -> float:
        """Of the token embedding."""
        return math.sqrt(self.mup_base or self.width) if self.embedding_scale is None else self.embedding_scale

    @property
    def logit_multiplier(self) -> float:
        return self.logit_scale / self.width_multiplier

    @property
    def recurrent(self) -> bool:
        """Whether the mixer carries a state from window to window."""
        return self.mixer.kind != "attention"
