"""A Hugging Face folder (config.json, safetensors) as our config and weights, and the reverse. Nothing is unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hotplate.model.config import ModelConfig
from hotplate.model.growth.strategies import declared_axes
from hotplate.model.hf.configs import from_hf, to_hf
from hotplate.model.hf.names import NAMES, Family
from hotplate.model.lm import LanguageModel

JSON_BYTES = 64 << 20  # larger is no config and no index
OPT_OFFSET = 2  # rows of OPT's position table before that of position 0, which no unpadded text reads


def load(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and fp32 weights of a decoder. ValueError for what is missing, foreign or of another shape."""
    family, config = from_hf(read_json(folder / "config.json"))
    tensors = _tensors(folder)
    weights = {}
    for name, axes in declared_axes(config).items():
        found = _ours(family, name, config, tensors, axes.blocks)
        weights[name] = found.float()
    left = [key for key in tensors if not key.endswith((".rotary_emb.inv_freq", ".attention.bias", ".masked_bias"))]
    if config.tied:
        left = [key for key in left if key not in ("lm_head.weight", "embed_out.weight")]
    if left:
        raise ValueError(f"{folder}: {len(left)} tensors that a {family} model does not have: {sorted(left)[:3]}")
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LanguageModel(config).named_parameters()}
    if wrong := [name for name in shapes if tuple(weights[name].shape) != shapes[name]]:
        name = wrong[0]
        raise ValueError(f"{folder}: {name} has shape {tuple(weights[name].shape)}, the config says {shapes[name]}")
    return config, weights


def save(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], family: Family) -> None:
    """Write the model as a checkpoint that `transformers` loads; multipliers that the family lacks are folded into the
    weights. ValueError where the family cannot say the model; OSError where the folder cannot be written."""
    folded, tied = _fold(config, weights)
    values = to_hf(config, family, tied)
    tensors: dict[str, Tensor] = {}
    for name, x in folded.items():
        tensors |= _theirs(family, name, config, x)
    folder.mkdir(parents=True)
    safetensors.torch.save_file(
        {name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _split(name: str) -> tuple[str, str]:
    """("3", "mlp.up.weight") of blocks.3.mlp.up.weight; ("", name) for the rest."""
    if not name.startswith("blocks."):
        return "", name
    _, layer, rest = name.split(".", 2)
    return layer, rest


def _foreign(family: Family, name: str) -> tuple[str, ...]:
    """Their names for our parameter, stacked along axis 0. ValueError where the family has none."""
    layer, rest = _split(name)
    table: Mapping[str, str | tuple[str, ...]] = NAMES[family].layer if layer else NAMES[family].top
    if rest not in table:
        raise ValueError(f"hugging face {family}: has no {rest}")
    found = table[rest]
    return tuple(part.format(layer) for part in ((found,) if isinstance(found, str) else found))


def _ours(
    family: Family, name: str, config: ModelConfig, tensors: dict[str, Tensor], blocks: tuple[int, ...]
) -> Tensor:
    parts = []
    for foreign in _foreign(family, name):
        if foreign not in tensors and foreign.removeprefix("model.") in tensors and family == "opt":
            foreign = foreign.removeprefix("model.")  # as the published OPT files call them
        if foreign not in tensors:
            raise ValueError(f"hugging face {family}: the files lack {foreign}")
        parts.append(tensors.pop(foreign))
    if len(parts) > 1 and [len(part) for part in parts] != list(blocks):
        raise ValueError(
            f"hugging face {family}: {name} wants {list(blocks)} rows, the files hold {[len(p) for p in parts]}"
        )
    x = torch.cat(parts) if len(parts) > 1 else parts[0]
    if name == "position.weight":
        return x[OPT_OFFSET:]
    if NAMES[family].interleaved == _split(name)[1].rpartition(".")[0]:
        q, k, v = x.unflatten(0, (config.mixer.heads, 3, -1)).unbind(1)
        order = _pairs_apart(config)
        return torch.stack([q[:, order], k[:, order], v]).flatten(0, 2)
    return x


def _pairs_apart(config: ModelConfig) -> Tensor:
    """Their feature of a head at each of our places. Their rotating features are the first R, paired across R / 2; ours
    are the first of both halves, paired across K / 2. Queries and keys in one order have the same products."""
    K, R = config.mixer.head_width, config.mixer.rotary_width
    turning, still = torch.arange(R), torch.arange(R, K)
    return torch.cat([turning[: R // 2], still[: (K - R) // 2], turning[R // 2 :], still[(K - R) // 2 :]])


def _theirs(family: Family, name: str, config: ModelConfig, x: Tensor) -> dict[str, Tensor]:
    foreign = _foreign(family, name)
    if name == "position.weight":
        return {foreign[0]: torch.cat([x.new_zeros(OPT_OFFSET, x.shape[1]), x])}
    if NAMES[family].interleaved == _split(name)[1].rpartition(".")[0]:
        q, k, v = x.unflatten(0, (3, config.mixer.heads, -1))
        order = _pairs_apart(config).argsort()
        return {foreign[0]: torch.stack([q[:, order], k[:, order], v], dim=1).flatten(0, 2)}
    rows = declared_axes(config)[name].blocks if len(foreign) > 1 else (len(x),)
    return {key: part.clone() for key, part in zip(foreign, x.split(list(rows)), strict=True)}


def _fold(config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Weights of the same function with embedding and logit multipliers of 1, and whether the head is still tied."""
    folded = {name: x.detach().float().cpu() for name, x in weights.items()}
    scale, logits = config.token_multiplier, config.logit_multiplier
    embedding = folded["embedding.weight"]
    tied = config.tied and scale == 1
    if tied and logits != 1 and "norm.weight" in folded:
        for name in ("norm.weight", "norm.bias"):
            if name in folded:
                folded[name] = folded[name] * logits
    elif not tied or logits != 1:
        tied = False
        folded["head.weight"] = folded.get("head.weight", embedding) * logits
    folded["embedding.weight"] = embedding * scale
    return folded, tied


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        mapped = read_json(index).get("weight_map")
        if not isinstance(mapped, dict):
            raise ValueError(f"{index}: holds no weight_map")
        names = sorted({str(value) for value in mapped.values()})
        if wrong := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ValueError(f"{index}: want names of safetensors files in this folder, got {wrong[0]!r}")
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt")]), None)
            hint = f"; {pickled.name} is pickled and will not be read: convert it to safetensors" if pickled else ""
            raise ValueError(f"{file}: missing{hint}")
        try:
            tensors |= safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, ValueError, OSError) as error:
            raise ValueError(f"{file}: not a safetensors file: {error}") from error
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; want a folder with config.json and safetensors files")
    with path.open("rb") as file:
        text = file.read(JSON_BYTES + 1)
    try:
        value = json.loads(text) if len(text) <= JSON_BYTES else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object of a sensible size")
    return value
