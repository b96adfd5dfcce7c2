"""HuBERT features from a local folder of safetensors, in batches whose clips do not see one another.

B clips, L samples, N frames, C channels, D width. Names of parameters are those of the published files.
Source: Hsu et al. 2021; the 25 Hz geometry with an eighth convolution: Hassid et al. 2023.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hotplate.train.errors import InputError
from hotplate.train.settings import merge
from hotplate.train.untrusted import read_object

SAMPLE_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class HubertConfig:
    """The geometry, by the names of config.json; the defaults are mHuBERT at 25 Hz (94,896,000 parameters)."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 8
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return int(np.prod(self.conv_stride))

    @property
    def padding(self) -> int:
        """Zeros on each side that make floor(L / hop) frames: half of the receptive field beyond the hop (40 for the
        25 Hz geometry, whose field is 720)."""
        field = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            field = (field - 1) * stride + kernel
        return (field - self.hop) // 2

    def frames(self, length: Tensor, layers: int | None = None) -> Tensor:
        """Frames after the first `layers` convolutions (default: all) of padded clips of `length` samples."""
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride, strict=True))[:layers]:
            length = (length - kernel) // stride + 1
        return length


class _Convolution(nn.Module):
    def __init__(self, config: HubertConfig, layer: int):
        super().__init__()
        width = config.conv_dim[layer - 1] if layer else 1
        self.conv = nn.Conv1d(
            width, config.conv_dim[layer], config.conv_kernel[layer], config.conv_stride[layer], bias=False
        )
        if layer == 0:
            self.layer_norm = nn.GroupNorm(config.conv_dim[0], config.conv_dim[0])

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [B, C, L]; `valid` bool [B, 1, N] for the first layer, whose normalisation is over time."""
        x = self.conv(x)
        if valid is not None:
            x = _normalised(x, valid, self.layer_norm)
        return F.gelu(x)


def _normalised(x: Tensor, valid: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Each channel of each clip to mean 0 and deviation 1 over its own frames, padding left out."""
    count = valid.sum(-1, keepdim=True)
    mean = (x * valid).sum(-1, keepdim=True) / count
    centred = (x - mean) * valid
    variance = centred.square().sum(-1, keepdim=True) / count
    return centred * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class _Block(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = _Attention(width, config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(width, eps)
        self.feed_forward = _FeedForward(width, config.intermediate_size)
        self.final_layer_norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x, valid))
        return self.final_layer_norm(x + self.feed_forward(x))


class _Positions(nn.Module):
    """A wide grouped convolution over time with weight normalisation per tap."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        width, taps = config.hidden_size, config.num_conv_pos_embeddings
        conv = nn.Conv1d(width, width, taps, padding=taps // 2, groups=config.num_conv_pos_embedding_groups)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
        self.surplus = 1 - taps % 2  # an even kernel gives one frame too many

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))
        return F.gelu(y[..., : y.shape[-1] - self.surplus]).transpose(1, 2)


class Hubert(nn.Module):
    """The post-norm base encoder. `masked_spec_embed` is of its pre-training; files have it, features do not use it."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.layer_norm_eps
        self.masked_spec_embed = nn.Parameter(torch.zeros(width))
        convolutions = nn.ModuleList(_Convolution(config, layer) for layer in range(len(config.conv_dim)))
        self.feature_extractor = nn.ModuleDict({"conv_layers": convolutions})
        self.feature_projection = nn.ModuleDict(
            {"layer_norm": nn.LayerNorm(config.conv_dim[-1], eps), "projection": nn.Linear(config.conv_dim[-1], width)}
        )
        blocks = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict(
            {"pos_conv_embed": _Positions(config), "layer_norm": nn.LayerNorm(width, eps), "layers": blocks}
        )

    @torch.no_grad()
    def hidden(self, wave: Tensor, length: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Output of block `layer` (0: the input of the first) [B, N, D], and the frames of each clip, int64 [B].

        wave fp32 [B, L]; samples at `length` [B] and beyond are not looked at.
        """
        pad = self.config.padding
        inside = torch.arange(wave.shape[1], device=wave.device) < length[:, None]
        x = F.pad(wave * inside, (pad, pad))[:, None]
        own = self.config.frames(length + 2 * pad, 1)
        first = _mask(own, self.config.frames(torch.tensor(x.shape[-1]), 1))[:, None]
        for number, convolution in enumerate(self._parts(self.feature_extractor["conv_layers"])):
            x = convolution(x, None if number else first)
        frames = self.config.frames(length + 2 * pad)
        valid = _mask(frames, x.shape[-1])
        x = self.feature_projection["projection"](self.feature_projection["layer_norm"](x.transpose(1, 2)))
        x = x * valid[..., None]  # what the positions of the last frames see is zero, as at the end of a lone clip
        x = self.encoder["layer_norm"](x + self.encoder["pos_conv_embed"](x))
        for block in self._parts(self.encoder["layers"])[:layer]:
            x = block(x, valid)
        return x, frames

    @staticmethod
    def _parts(modules: nn.Module) -> list[nn.Module]:
        assert isinstance(modules, nn.ModuleList)
        return list(modules)


def _mask(count: Tensor, size: int | Tensor) -> Tensor:
    """bool [B, size]: place below count [B]."""
    return torch.arange(int(size), device=count.device) < count[:, None]


class HubertFeatures:
    """The hidden state after block `layer` of a local HuBERT."""

    name = "hubert"
    sample_rate = SAMPLE_RATE

    def __init__(self, model: Hubert, layer: int, weights_sha256: str):
        count = model.config.num_hidden_layers
        if not 0 <= layer <= count:
            raise InputError(f"--layer {layer}: this HuBERT has blocks 1 to {count}, and 0 for their input")
        self.model, self.layer, self.weights_sha256 = model.eval(), layer, weights_sha256
        self.unit_seconds = model.config.hop / SAMPLE_RATE
        self.width = model.config.hidden_size
        self.options: dict[str, Any] = {"layer": layer, "padding": model.config.padding}

    @classmethod
    def open(cls, folder: Path, layer: int, device: str) -> "HubertFeatures":
        """config.json and model.safetensors of `folder`. InputError: missing, of another kind, or not fitting."""
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: no CUDA device here; use --device cpu")
        config = config_of(folder)
        path = folder / "model.safetensors"
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot read the weights: {error}") from error
        with torch.device("meta"):
            model = Hubert(config)
        weights = {_current_name(name): tensor.float() for name, tensor in weights.items()}
        weights.setdefault("masked_spec_embed", torch.zeros(config.hidden_size))
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise InputError(f"{path}: the weights do not fit {folder / 'config.json'}: {error}") from error
        return cls(model.to(device), layer, hashlib.sha256(path.read_bytes()).hexdigest())

    def features(self, wave: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
        """wave float32 [B, L], length [B] -> float32 [frames, D] each."""
        device = self.model.masked_spec_embed.device
        hidden, frames = self.model.hidden(
            torch.from_numpy(wave).to(device), torch.from_numpy(length).to(device), self.layer
        )
        return [row[:count].float().cpu().numpy() for row, count in zip(hidden, frames.tolist(), strict=True)]


def config_of(folder: Path) -> HubertConfig:
    """Of the folder's config.json. InputError for what is none, or of another form."""
    path = folder / "config.json"
    content = read_object(path, "the configuration", "use the published one")
    want = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False, "hidden_act": "gelu"}
    if wrong := {name: content[name] for name, value in want.items() if content.get(name, value) != value}:
        raise InputError(f"{path}: want a HuBERT of the base form {want}, got {wrong}")
    known = {field.name for field in fields(HubertConfig)}
    return merge(HubertConfig(), {name: value for name, value in content.items() if name in known}, str(path))


def _current_name(name: str) -> str:
    """Names of weight normalisation before and after torch 2.1, and the prefix that heads put before the encoder."""
    name = name.removeprefix("hubert.")
    return name.replace("conv.weight_g", "conv.parametrizations.weight.original0").replace(
        "conv.weight_v", "conv.parametrizations.weight.original1"
    )
