"""`config.json` of Hugging Face's decoder families as our config, and back; what cannot be said is refused."""

from collections.abc import Mapping
from typing import Any, get_args

from hotplate.model.config import MixerConfig, ModelConfig
from hotplate.model.hf.names import Family

FAMILIES: tuple[Family, ...] = get_args(Family)
ACTIVATIONS = {"gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
EPS = 1e-5  # of OPT's and OLMo's norms, which their config does not hold
# Fields that change what is computed, with the only value that this model has a form for.
ONLY: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
    "qwen2": {"use_sliding_window": False, "hidden_act": "silu"},
    "olmo": {"clip_qkv": None, "attention_bias": False, "hidden_act": "silu"},
    "gpt_neox": {"attention_bias": True},
    "opt": {
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
}


def from_hf(values: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """(family, config) of a `config.json`. ValueError for an unknown family, a missing field or an option that this
    model has no form for."""
    family: Family | None = next((known for known in FAMILIES if known == values.get("model_type")), None)
    if family is None:
        raise ValueError(f"hugging face: want model_type in {list(FAMILIES)}, got {values.get('model_type')!r}")
    for field, only in ONLY[family].items():
        if values.get(field, only) != only:
            raise ValueError(f"hugging face {family}: {field} {values[field]!r} has no form here, only {only!r}")
    try:
        return family, _FROM[family](values)
    except KeyError as error:
        raise ValueError(f"hugging face {family}: config.json lacks {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"hugging face {family}: config.json holds another kind of value: {error}") from error


def _rope(values: Mapping[str, Any], base: str = "rope_theta") -> tuple[float, float]:
    """(theta, rotating share of a head). ValueError for stretched positions."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"hugging face: rotary positions of type {kind!r} have no form here, only 'default'")
    theta = rope.get("rope_theta", values.get(base, 10_000.0))
    return float(theta), float(rope.get("partial_rotary_factor", values.get("rotary_pct", 1.0)))


def _llama_like(values: Mapping[str, Any]) -> ModelConfig:
    family, heads = values["model_type"], values["num_attention_heads"]
    kv_heads = values.get("num_key_value_heads")
    theta, _ = _rope(values)
    return ModelConfig(
        layers=values["num_hidden_layers"],
        width=values["hidden_size"],
        ffn=values["intermediate_size"],
        vocab=values["vocab_size"],
        context=values["max_position_embeddings"],
        mlp="swiglu",
        norm="plain_layernorm" if family == "olmo" else "rmsnorm",
        norm_eps=EPS if family == "olmo" else values["rms_norm_eps"],
        positions="rotary",
        bias="qkv" if family == "qwen2" else "none",
        tied=values.get("tie_word_embeddings", False),
        embedding_scale=1.0,
        mixer=MixerConfig(
            heads=heads,
            head_width=values.get("head_dim") or values["hidden_size"] // heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            rope_theta=theta,
        ),
    )


def _gpt_neox(values: Mapping[str, Any]) -> ModelConfig:
    theta, share = _rope(values, "rotary_emb_base")
    heads = values["num_attention_heads"]
    return ModelConfig(
        layers=values["num_hidden_layers"],
        width=values["hidden_size"],
        ffn=values["intermediate_size"],
        vocab=values["vocab_size"],
        context=values["max_position_embeddings"],
        mlp=_activation(values["hidden_act"]),
        parallel=values.get("use_parallel_residual", True),
        norm_eps=values["layer_norm_eps"],
        positions="rotary",
        tied=values.get("tie_word_embeddings", False),
        embedding_scale=1.0,
        mixer=MixerConfig(
            heads=heads, head_width=values["hidden_size"] // heads, rope_theta=theta, rotary_fraction=share
        ),
    )


def _opt(values: Mapping[str, Any]) -> ModelConfig:
    if values.get("word_embed_proj_dim", values["hidden_size"]) != values["hidden_size"]:
        raise ValueError(
            f"hugging face opt: embeddings of {values['word_embed_proj_dim']} features beside a stream of "
            f"{values['hidden_size']} have no form here"
        )
    heads = values["num_attention_heads"]
    return ModelConfig(
        layers=values["num_hidden_layers"],
        width=values["hidden_size"],
        ffn=values["ffn_dim"],
        vocab=values["vocab_size"],
        context=values["max_position_embeddings"],
        mlp=_activation(values["activation_function"]),
        norm_eps=EPS,
        tied=values.get("tie_word_embeddings", True),
        embedding_scale=1.0,
        mixer=MixerConfig(heads=heads, head_width=values["hidden_size"] // heads),
    )


def _activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise ValueError(f"hugging face: activation {name!r} has no form here, only {list(ACTIVATIONS)}")
    return ACTIVATIONS[name]


_FROM = {"llama": _llama_like, "qwen2": _llama_like, "olmo": _llama_like, "gpt_neox": _gpt_neox, "opt": _opt}


def to_hf(config: ModelConfig, family: Family, tied: bool) -> dict[str, Any]:
    """`config.json` for a model of this family. ValueError naming the fields that the family cannot say."""
    mixer = config.mixer
    common: dict[str, Any] = {
        "model_type": family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": mixer.heads,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }
    rope = {"rope_type": "default", "rope_theta": mixer.rope_theta}
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}.get(config.mlp, "silu")
    if family == "opt":
        values = {
            **common,
            "architectures": ["OPTForCausalLM"],
            "ffn_dim": config.ffn,
            "activation_function": activation,
            "word_embed_proj_dim": config.width,
            "do_layer_norm_before": True,
            "dropout": 0.0,
        }
    elif family == "gpt_neox":
        values = {
            **common,
            "architectures": ["GPTNeoXForCausalLM"],
            "intermediate_size": config.ffn,
            "hidden_act": activation,
            "use_parallel_residual": config.parallel,
            "layer_norm_eps": config.norm_eps,
            "attention_bias": True,
            "rotary_pct": mixer.rotary_fraction,
            "rotary_emb_base": mixer.rope_theta,
            "rope_parameters": {**rope, "partial_rotary_factor": mixer.rotary_fraction},
        }
    else:
        architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "olmo": "OlmoForCausalLM"}[family]
        values = {
            **common,
            "architectures": [architecture],
            "intermediate_size": config.ffn,
            "num_key_value_heads": mixer.groups,
            "head_dim": mixer.head_width,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_theta": mixer.rope_theta,
            "rope_parameters": rope,
        }
    _, understood = from_hf(values)
    ignored = ("context", "tied", "embedding_scale", "logit_scale", "init_std", "mup_base", "impl", "mixer")
    wrong = [f for f in vars(config) if f not in ignored and getattr(config, f) != getattr(understood, f)]
    of_mixer = ["kind", "groups", "head_width", "qk_norm"]
    if config.positions == "rotary":
        of_mixer.append("rotary_width")
    wrong += [f"mixer.{f}" for f in of_mixer if getattr(mixer, f) != getattr(understood.mixer, f)]
    if family != "llama" and mixer.width != config.width:
        wrong.append("heads x head_width != width")
    if wrong:
        raise ValueError(f"hugging face {family}: has no form for this model's {', '.join(wrong)}")
    return values
