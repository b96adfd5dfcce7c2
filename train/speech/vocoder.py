"""Units to sound with a unit HiFi-GAN of local weights: config.json and model.safetensors in a folder.

B utterances, U units, N frames, C channels. Names of parameters are those of the published unit vocoders; weight
normalisation (`weight_g`, `weight_v`) is folded into plain weights when they are loaded.
Sources: Kong, Kim and Bae 2020; Polyak et al. 2021 (units, durations).
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hotplate.train.errors import InputError
from hotplate.train.settings import merge
from hotplate.train.untrusted import read_object

SLOPE, LAST_SLOPE = 0.1, 0.01  # of the leaky rectifiers


@dataclass(frozen=True, kw_only=True)
class DurationConfig:
    """The predictor of log durations."""

    encoder_embed_dim: int = 128
    var_pred_hidden_dim: int = 128
    var_pred_kernel_size: int = 3


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """The geometry, by the names of config.json; the defaults give 640 samples a frame (25 Hz at 16 kHz)."""

    num_embeddings: int = 500
    embedding_dim: int = 128
    upsample_rates: tuple[int, ...] = (5, 4, 4, 4, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 8, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    sampling_rate: int = 16_000
    dur_predictor_params: DurationConfig = DurationConfig()

    def __post_init__(self) -> None:
        if any((k - r) % 2 for k, r in zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True)):
            raise ValueError("want upsampling kernels that exceed their rates by even numbers: frames of equal length")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return int(np.prod(self.upsample_rates))


class _Residual(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        wide = (nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations)
        self.convs1 = nn.ModuleList(wide)
        self.convs2 = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for wide, narrow in zip(self.convs1, self.convs2, strict=True):
            x = x + narrow(F.leaky_relu(wide(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class _Durations(nn.Module):
    def __init__(self, config: DurationConfig):
        super().__init__()
        inner, kernel = config.var_pred_hidden_dim, config.var_pred_kernel_size
        first = nn.Conv1d(config.encoder_embed_dim, inner, kernel, padding=(kernel - 1) // 2)
        self.conv1 = nn.Sequential(first, nn.ReLU())
        self.ln1 = nn.LayerNorm(inner)
        self.conv2 = nn.Sequential(nn.Conv1d(inner, inner, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(inner)
        self.proj = nn.Linear(inner, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, U, C] -> log(1 + frames) [B, U]."""
        x = self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2))
        x = self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2))
        return self.proj(x)[..., 0]


class UnitVocoder(nn.Module):
    """Embedding, duration predictor, HiFi-GAN generator."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        width = config.upsample_initial_channel
        self.dict = nn.Embedding(config.num_embeddings, config.embedding_dim)
        self.dur_predictor = _Durations(config.dur_predictor_params)
        self.conv_pre = nn.Conv1d(config.embedding_dim, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2))
            width //= 2
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(_Residual(width, size, dilations))
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)

    @classmethod
    def open(cls, folder: Path) -> "UnitVocoder":
        """InputError: missing or damaged files, or weights that do not fit the configuration."""
        config = config_of(folder / "config.json")
        path = folder / "model.safetensors"
        try:
            weights = _folded(load_file(path))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: cannot read the vocoder's weights: {error}") from error
        with torch.device("meta"):
            vocoder = cls(config)
        try:
            vocoder.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise InputError(f"{path}: the weights do not fit {folder / 'config.json'}: {error}") from error
        return vocoder.eval()

    @torch.no_grad()
    def durations(self, units: np.ndarray) -> np.ndarray:
        """int64 [U] frames of each unit as the predictor has them, at least 1."""
        codes = self.dict(torch.from_numpy(units.astype(np.int64))[None])
        return (self.dur_predictor(codes).exp() - 1).round().clamp(min=1).long()[0].numpy()

    @torch.no_grad()
    def speak(self, units: np.ndarray, durations: np.ndarray | None = None) -> np.ndarray:
        """float32 [hop * frames] of one utterance; `durations` None: the predicted ones. InputError: unknown units."""
        if not len(units) or units.max() >= self.config.num_embeddings:
            raise InputError(f"vocoder: want units below {self.config.num_embeddings}, got {units.max(initial=-1)}")
        durations = self.durations(units) if durations is None else durations
        codes = torch.from_numpy(np.repeat(units.astype(np.int64), durations))
        x = self.conv_pre(self.dict(codes[None]).transpose(1, 2))
        kinds = len(self.config.resblock_kernel_sizes)
        for number, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = list(self.resblocks)[number * kinds : (number + 1) * kinds]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))[0, 0].numpy()


def config_of(path: Path) -> VocoderConfig:
    """Of a config.json. InputError for what is none."""
    content = read_object(path, "the vocoder's configuration", "use the published one")
    wanted = {field.name for field in fields(DurationConfig)}
    values = {field.name: content[field.name] for field in fields(VocoderConfig) if field.name in content}
    durations = values.get("dur_predictor_params")
    if isinstance(durations, dict):
        values["dur_predictor_params"] = {name: value for name, value in durations.items() if name in wanted}
    return merge(VocoderConfig(), values, str(path))


def _folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """weight_g * weight_v / |weight_v| over all but the first dimension, as one plain weight."""
    weights = {name.removeprefix("generator."): tensor.float() for name, tensor in weights.items()}
    folded = {name: tensor for name, tensor in weights.items() if not name.endswith(("weight_g", "weight_v"))}
    for name in [name for name in weights if name.endswith("weight_v")]:
        stem = name.removesuffix("_v")
        direction = weights[name]
        norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
        folded[stem] = direction * (weights[f"{stem}_g"].view_as(norm) / norm)
    return folded
