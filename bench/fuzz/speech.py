"""Files of speech: waveforms, units, codebooks, word times, triplets, aligned documents, configurations of models."""

import copy
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hotplate.bench.fuzz.target import Target
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.mixed import MixedTokenizer
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.data.units import UnitDescription
from hotplate.train.errors import InputError
from hotplate.train.speech import hubert, vocoder
from hotplate.train.speech.audio import read_audio, soundfile, write_audio
from hotplate.train.speech.codebook import Codebook
from hotplate.train.speech.encoder import Units
from hotplate.train.speech.preferences import PARTS, read_triplets
from hotplate.train.speech.spoken import SPOKEN, read_alignment, read_spoken
from hotplate.train.speech.store import UnitFolder

DESCRIPTION = UnitDescription(
    backend="mel", units=100, unit_seconds=0.04, sample_rate=16000, weights_sha256="", codebook_sha256="0" * 64,
    options={},
)  # fmt: skip


def speech(folder: Path, data: Path) -> list[Target]:
    """`data`: a prepared data set of text."""
    place = folder / "speech"
    place.mkdir()
    times, triplets, wave = place / "times.json", place / "triplets.jsonl", place / "a.wav"
    words = [{"word": w, "start_time": n / 4, "end_time": n / 4 + 0.2} for n, w in enumerate(["one", "two", "three"])]
    triplet = {"text": "x", **{f"{part}_path": f"{part}.wav" for part in PARTS}}
    encoder, speaker, codebook = place / "config.json", place / "vocoder.json", place / "codebook.safetensors"
    Codebook(np.ones((3, 4), np.float32), None, {"backend": "mel"}).write(codebook)
    geometry = {"hidden_size": 32, "conv_dim": [8, 8], "feat_extract_norm": "group", "layer_norm_eps": 1e-5}
    upsampling = {"upsample_rates": [5, 4], "upsample_kernel_sizes": [11, 8], "dur_predictor_params": {}}
    found = [
        Target("word times", times, [json.dumps({"aligned_text": words}).encode()], lambda: read_alignment(times)),
        Target("triplets", triplets, [json.dumps(triplet).encode()], lambda: read_triplets(triplets)),
        Target("codebook", codebook, [codebook.read_bytes()], lambda: Codebook.read(codebook)),
        Target("HuBERT's config", encoder, [json.dumps(geometry).encode()], lambda: hubert.config_of(place)),
        Target("vocoder's config", speaker, [json.dumps(upsampling).encode()], lambda: vocoder.config_of(speaker)),
        *_units(place, data),
    ]
    try:
        soundfile()
    except InputError:  # an optional package
        return found
    write_audio(wave, np.sin(np.arange(64, dtype=np.float32)), 16_000)
    return [*found, Target("wav", wave, [wave.read_bytes()], lambda: read_audio(wave, 16_000, resample=True))]


def _units(place: Path, data: Path) -> list[Target]:
    units = UnitFolder.create(place / "units", DESCRIPTION)
    each = Units(np.array([3, 7, 99], np.uint16), np.array([1, 2, 1], np.uint16))
    shard = units.write("0", ["a.wav", "b.wav"], [("a.wav", each), ("b.wav", each)])
    text = Dataset.open(data, "header")
    assert isinstance(text.tokenizer, Tokenizer)
    vocabulary = MixedTokenizer.write(_folder(place / "mixed"), text.tokenizer, DESCRIPTION).path
    dataset = copy.copy(text)
    dataset.folder = _folder(place / "aligned")
    aligned = dataset.folder / SPOKEN
    tensors = {
        "units": each.units, "unit_counts": np.array([3]), "word_counts": np.array([2]), "first": np.array([0, 1]),
        "last": np.array([1, 3]), "text": np.array([5, 6, 7], np.int32), "word_ends": np.array([2, 3]),
    }  # fmt: skip
    facts = {"fingerprint": dataset.tokenizer.fingerprint, "names": '["a.wav"]', "interleave": '{"share": 0.5}'}
    save_file(tensors, aligned, facts)
    return [
        Target("units shard", shard, [shard.read_bytes()], lambda: (units.done(), list(units.utterances()))),
        Target("text and units", vocabulary, [vocabulary.read_bytes()], lambda: MixedTokenizer.load(vocabulary)),
        Target("aligned documents", aligned, [aligned.read_bytes()], lambda: read_spoken(dataset)),
    ]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
