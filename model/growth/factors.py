"""By how much each axis of a model grows, and the config of the grown model."""

from dataclasses import dataclass, replace

from hotplate.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Integer multiplicities of a model's axes; 1 keeps an axis."""

    width: int = 1
    """residual stream"""
    ffn: int = 1
    """hidden features of the MLP"""
    heads: int = 1
    """heads of the mixer; key/value heads grow alike unless kv_heads says otherwise"""
    kv_heads: int | None = None
    """attention: key/value heads; must divide heads; none = heads, or 1 where all queries share one"""
    head_width: int = 1
    """features per head"""
    depth: int = 1
    """blocks"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"growth: want a whole factor >= 1 for {name}, got {value}; a copy of part of the features would "
                    "change the mean and variance that the norms see, and with them the function"
                )

    def kv(self, config: ModelConfig) -> int:
        """Multiplicity of the key/value heads."""
        if self.kv_heads is not None:
            return self.kv_heads
        return 1 if config.mixer.groups == 1 else self.heads


def factors_between(old: ModelConfig, new: ModelConfig) -> Factors:
    """The factors that lead from one config to another. ValueError where a size is no multiple, or where another
    field differs."""
    sizes = {
        "width": (old.width, new.width),
        "ffn": (old.ffn, new.ffn),
        "heads": (old.mixer.heads, new.mixer.heads),
        "kv_heads": (old.mixer.groups, new.mixer.groups),
        "head_width": (old.mixer.head_width, new.mixer.head_width),
        "depth": (old.layers, new.layers),
    }
    for name, (before, after) in sizes.items():
        if after % before:
            raise ValueError(
                f"growth: want a multiple of {before} for {name}, got {after}; only whole copies keep the function"
            )
    factors = Factors(**{name: after // before for name, (before, after) in sizes.items()})
    made = grown_config(old, factors)
    for field in ("vocab", "context", "mlp", "parallel", "norm", "norm_eps", "positions", "bias", "tied"):
        if getattr(made, field) != getattr(new, field):
            raise ValueError(
                f"growth: {field} is {getattr(old, field)!r} in the small model and {getattr(new, field)!r} in the "
                "large one; growth keeps it"
            )
    return factors


def grown_config(old: ModelConfig, factors: Factors) -> ModelConfig:
    """The config of the grown model. ValueError where the function cannot be kept."""
    mixer = old.mixer
    if factors.heads % factors.kv(old):
        raise ValueError(
            f"growth: want a factor of kv_heads that divides that of heads ({factors.heads}), got {factors.kv(old)}"
        )
    if factors.head_width > 1 and old.positions == "rotary":
        raise ValueError(
            "growth: head_width cannot grow under rotary positions, whose frequencies depend on it; grow heads instead"
        )
    if mixer.kind != "attention" and factors.kv_heads not in (None, factors.heads):
        raise ValueError(f"growth: kv_heads belongs to attention, got mixer kind {mixer.kind}; leave it out")
    wider = old.width * factors.width
    head = old.logit_multiplier / (factors.width if old.tied else 1)  # a tied matrix is copied, not divided
    return replace(
        old,
        layers=old.layers * factors.depth,
        width=wider,
        ffn=old.ffn * factors.ffn,
        embedding_scale=old.token_multiplier,  # stays: the copies hold the same values
        logit_scale=head if old.mup_base is None else head * wider / old.mup_base,
        mixer=replace(
            mixer,
            heads=mixer.heads * factors.heads,
            kv_heads=None
            if mixer.kv_heads is None and factors.kv(old) == factors.heads
            else mixer.groups * factors.kv(old),
            head_width=mixer.head_width * factors.head_width,
        ),
    )
