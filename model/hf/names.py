"""What the tensors of Hugging Face's decoder families are called, and how they are stacked, against ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "qwen2", "olmo", "gpt_neox", "opt"]


@dataclass(frozen=True)
class Names:
    """A family's tensor names for ours; `{}` is the layer. A tuple is stacked along axis 0."""

    top: Mapping[str, str]
    layer: Mapping[str, str | tuple[str, ...]]
    interleaved: str | None = None  # ours: rows of its q, k, v are stacked head by head there


def _both(names: Mapping[str, str | tuple[str, ...]], kinds: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """`ours: theirs` for weights and, where the family has them, biases."""
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}" if isinstance(theirs, str) else tuple(f"{t}.{kind}" for t in theirs)
        for ours, theirs in names.items()
        for kind in kinds
    }


_LLAMA_LAYER: dict[str, str | tuple[str, ...]] = {
    "mixer.qkv": tuple(f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
    "mixer.out": "model.layers.{}.self_attn.o_proj",
    "mlp.up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "mlp.down": "model.layers.{}.mlp.down_proj",
}
_LLAMA_NORMS: dict[str, str | tuple[str, ...]] = {
    "mixer_norm": "model.layers.{}.input_layernorm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
}
_LLAMA_TOP = {"embedding.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
_NEOX = "gpt_neox.layers.{}."
_OPT = "model.decoder.layers.{}."
_ALL = ("weight", "bias")
NAMES: dict[str, Names] = {
    "llama": Names(
        {**_LLAMA_TOP, "norm.weight": "model.norm.weight"}, _both({**_LLAMA_LAYER, **_LLAMA_NORMS}, ("weight",))
    ),
    "qwen2": Names(
        {**_LLAMA_TOP, "norm.weight": "model.norm.weight"},
        {
            **_both({**_LLAMA_LAYER, **_LLAMA_NORMS}, ("weight",)),
            **_both({"mixer.qkv": _LLAMA_LAYER["mixer.qkv"]}, ("bias",)),
        },
    ),
    "olmo": Names(_LLAMA_TOP, _both(_LLAMA_LAYER, ("weight",))),
    "gpt_neox": Names(
        {
            "embedding.weight": "gpt_neox.embed_in.weight",
            "head.weight": "embed_out.weight",
            "norm.weight": "gpt_neox.final_layer_norm.weight",
            "norm.bias": "gpt_neox.final_layer_norm.bias",
        },
        _both(
            {
                "mixer_norm": f"{_NEOX}input_layernorm",
                "mlp_norm": f"{_NEOX}post_attention_layernorm",
                "mixer.qkv": f"{_NEOX}attention.query_key_value",
                "mixer.out": f"{_NEOX}attention.dense",
                "mlp.up": f"{_NEOX}mlp.dense_h_to_4h",
                "mlp.down": f"{_NEOX}mlp.dense_4h_to_h",
            },
            _ALL,
        ),
        interleaved="mixer.qkv",
    ),
    "opt": Names(
        {
            "embedding.weight": "model.decoder.embed_tokens.weight",
            "position.weight": "model.decoder.embed_positions.weight",
            "head.weight": "lm_head.weight",
            "norm.weight": "model.decoder.final_layer_norm.weight",
            "norm.bias": "model.decoder.final_layer_norm.bias",
        },
        _both(
            {
                "mixer_norm": f"{_OPT}self_attn_layer_norm",
                "mlp_norm": f"{_OPT}final_layer_norm",
                "mixer.qkv": tuple(f"{_OPT}self_attn.{x}_proj" for x in "qkv"),
                "mixer.out": f"{_OPT}self_attn.out_proj",
                "mlp.up": f"{_OPT}fc1",
                "mlp.down": f"{_OPT}fc2",
            },
            _ALL,
        ),
    ),
}
