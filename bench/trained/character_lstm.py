"""The character LSTM of the package textgenrnn 2.0.0 (MIT; trained on titles), on our kernels, and grown.

Characters -> embedding E (100) -> LSTM (128) -> LSTM (128) -> average over the window, weighted by a softmax over
steps, of [embedding, first h, second h] -> logits over 465 characters.
Letters: N windows, T steps, V characters.
"""

import io
import json
import math
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, nll_loss

from hotplate.kernels.lstm_dense import lstm_dense
from hotplate.model.axes import Axes
from hotplate.model.growth import expand
from hotplate.model.growth.maps import AxisMap, identity, stacked, tile
from hotplate.train.errors import InputError

WINDOW = 40  # characters that the published model looks back
LARGEST = 8 << 20  # bytes of an archive member; the weights are 1.9 MB
EMBEDDING, FIRST, SECOND = 100, 128, 128
JOINED = ("embedding", "first", "second")
# Recurrent matrices [gate, in, out] grow gate by gate; in torch's order of projections, [4 out, in].
AXES = {
    "embedding": Axes(("vocab", "embedding"), reads=0, writes=1),
    "first.weight": Axes(("first", "embedding"), (FIRST,) * 4, ("first",) * 4, reads=1),
    "first.bias": Axes(("first",), (FIRST,) * 4, ("first",) * 4),
    "first.recurrent": Axes(("gates", "first", "first"), reads=1, writes=2),
    "second.weight": Axes(("second", "first"), (SECOND,) * 4, ("second",) * 4, reads=1),
    "second.bias": Axes(("second",), (SECOND,) * 4, ("second",) * 4),
    "second.recurrent": Axes(("gates", "second", "second"), reads=1, writes=2),
    "attention": Axes(("one", "joined"), reads=1),
    "output.weight": Axes(("vocab", "joined"), reads=1),
    "output.bias": Axes(("vocab",)),
}


@dataclass(frozen=True)
class CharacterLSTM:
    """Weights by the names of AXES, any floating dtype, and the number of every known character."""

    weights: Mapping[str, Tensor]
    vocabulary: Mapping[str, int]

    def logits(self, ids: Tensor, impl: str) -> Tensor:
        """ids int64 [N, T] -> [N, V], of the character after each window. impl: of lstm_dense."""
        w = self.weights
        x = w["embedding"][ids]
        parts = [x]
        for name in ("first", "second"):
            recurrent = w[f"{name}.recurrent"]
            gates = linear(parts[-1], w[f"{name}.weight"], w[f"{name}.bias"])
            parts.append(lstm_dense(gates.unflatten(-1, (4, recurrent.shape[-1])), recurrent, impl=impl)[0])
        joined = torch.cat(parts, -1)
        shares = linear(joined, w["attention"]).softmax(1)
        return linear((joined * shares).sum(1), w["output.weight"], w["output.bias"])

    def windows(self, text: str) -> tuple[Tensor, Tensor]:
        """Every character's window of what stands before it, padded with 0 on the left, and the character."""
        ids = [self.vocabulary["<s>"], *(self.vocabulary.get(character, 0) for character in text)]
        before = [ids[max(0, t - WINDOW) : t] for t in range(1, len(ids))]
        padded = [[0] * (WINDOW - len(window)) + window for window in before]
        return torch.tensor(padded), torch.tensor(ids[1:])

    def loss(self, text: str, impl: str = "auto") -> float:
        """Nats per character."""
        windows, targets = self.windows(text)
        return nll_loss(self.logits(windows, impl).log_softmax(-1), targets).item()

    def to(self, dtype: torch.dtype) -> "CharacterLSTM":
        return CharacterLSTM({name: x.to(dtype) for name, x in self.weights.items()}, self.vocabulary)

    def grown(self, n: int, noise: expand.Noise | None) -> "CharacterLSTM":
        """Embedding and both states n times as wide; the same function."""
        sizes = {"embedding": EMBEDDING, "first": FIRST, "second": SECOND}
        maps: dict[str, AxisMap] = {name: tile(size, n) for name, size in sizes.items()}
        maps |= {name: identity(self.weights["embedding"].shape[0]) for name in ("vocab",)}
        maps |= {"gates": identity(4), "one": identity(1)}
        joined = stacked([maps[name] for name in JOINED], [sizes[name] for name in JOINED])
        maps["joined"] = joined
        copies = {name: n if name in (*sizes, "joined") else 1 for name in maps}
        wide = {}
        for name, x in self.weights.items():
            layout = expand.layout(AXES[name], maps, copies)
            wide[name] = expand.weight(name, x.double(), AXES[name], layout, expand.symmetric, noise)
        return CharacterLSTM(wide, self.vocabulary)


def read(archive: Path) -> CharacterLSTM:
    """Weights in float64 from the source package's archive; nothing is unpacked. InputError where it is another."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("bench trained: needs h5py; pip install 'hotplate[published]'") from error
    try:
        with tarfile.open(archive) as package:
            vocabulary = json.loads(_member(package, "textgenrnn_vocab.json"))
            with h5py.File(io.BytesIO(_member(package, "textgenrnn_weights.hdf5")), "r") as file:
                return CharacterLSTM(_weights(file), vocabulary)
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{archive}: not textgenrnn 2.0.0's archive ({error}); see `make trained`") from error


def _member(package: tarfile.TarFile, name: str) -> bytes:
    member = package.getmember(f"textgenrnn-2.0.0/textgenrnn/{name}")
    file = package.extractfile(member) if member.isfile() and member.size <= LARGEST else None
    if file is None:
        raise ValueError(f"{name} is no file of at most {LARGEST} bytes")
    return file.read()


def _weights(file: Any) -> dict[str, Tensor]:
    """cuDNN's layout: four gates (i, f, z, o) side by side, each a transposed matrix in a buffer of the other shape,
    and two biases that are added."""

    def tensor(*path: str) -> Tensor:
        return torch.from_numpy(file["/".join(path)][()]).double()

    found = {
        "embedding": tensor("embedding", "embedding", "embeddings:0"),
        "attention": tensor("attention", "attention", "attention_W:0").T,
        "output.weight": tensor("output", "output", "kernel:0").T,
        "output.bias": tensor("output", "output", "bias:0"),
    }
    for ours, theirs in (("first", "rnn_1"), ("second", "rnn_2")):
        kernel, recurrent, bias = (tensor(theirs, theirs, f"{n}:0") for n in ("kernel", "recurrent_kernel", "bias"))
        inputs, width = kernel.shape[0], recurrent.shape[0]
        found[f"{ours}.weight"] = torch.cat([k.reshape(width, inputs) for k in _as_buffers(kernel)])
        found[f"{ours}.recurrent"] = torch.stack([k.T for k in recurrent.chunk(4, 1)])
        found[f"{ours}.bias"] = bias.view(2, -1).sum(0)
    return {name: x.contiguous() for name, x in found.items()}


def _as_buffers(kernel: Tensor) -> list[Tensor]:
    """Each gate's numbers in the order in which cuDNN keeps them: rows of [width, inputs]."""
    return [part.contiguous().flatten() for part in kernel.chunk(4, 1)]


def compare(model: CharacterLSTM, texts: Mapping[str, str], n: int, snr_db: float) -> dict[str, Any]:
    """Losses on the texts and the error of growth, relative to the largest logit, by dtype."""
    noise = expand.Noise(snr_db, 0)
    wide = model.grown(n, noise)
    counts = [sum(x.numel() for x in each.weights.values()) for each in (model, wide)]
    found: dict[str, Any] = {"parameters": counts, "copies": n, "snr_db": snr_db, "uniform": math.log(465), "loss": {}}
    for name, text in texts.items():
        found["loss"][name] = {
            "small, definition, float64": model.loss(text, "reference"),
            "small, float32": model.to(torch.float32).loss(text),
            "grown, float32": wide.to(torch.float32).loss(text),
        }
    windows, _ = model.windows("".join(texts.values()))
    found["growth_error"] = {}
    for dtype in (torch.float64, torch.float32):
        impl = "eager" if dtype == torch.float64 else "auto"
        before, after = (each.to(dtype).logits(windows, impl) for each in (model, wide))
        found["growth_error"][str(dtype).removeprefix("torch.")] = float(
            (after - before).abs().max() / before.abs().max()
        )
    return found
