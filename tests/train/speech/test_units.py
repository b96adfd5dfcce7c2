"""Waveforms to units: frame counts, independence of the batch, HuBERT against its published form, k-means."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from speech_waves import babble

from hotplate.train.data.units import UnitDescription
from hotplate.train.errors import InputError
from hotplate.train.speech import kmeans
from hotplate.train.speech.codebook import EMBEDDED, Codebook
from hotplate.train.speech.encoder import UnitEncoder, collapse, open_encoder
from hotplate.train.speech.hubert import Hubert, HubertConfig, HubertFeatures
from hotplate.train.speech.mel import MelFeatures

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 8,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module")
def hubert_folder(tmp_path_factory: pytest.TempPathFactory):
    """A small random HuBERT of the 25 Hz geometry, and a codebook of its own features."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in SMALL.items()}
    save_file(Hubert(HubertConfig(**values)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SMALL))
    features = HubertFeatures.open(folder, 2, "cpu")
    wave = babble(4)
    points = features.features(wave[None], np.array([len(wave)]))[0]
    Codebook(kmeans.fit(points, 20, 0), None, None).write(folder / "codebook.safetensors")
    return folder


def encoders(hubert_folder) -> dict[str, UnitEncoder]:
    hubert = open_encoder("hubert", str(hubert_folder), 2, str(hubert_folder / "codebook.safetensors"))
    return {"mel": open_encoder(), "hubert": hubert}


@pytest.mark.parametrize("backend", ["mel", "hubert"])
def test_units_do_not_depend_on_the_batch(backend: str, hubert_folder) -> None:
    """Padding, here filled with noise, and neighbours change neither the units nor the number of frames."""
    encoder = encoders(hubert_folder)[backend]
    lengths = np.array([640, 12_345, 15_999, 16_000, 16_640, 32_000])
    waves = [babble(2, seed)[:length] for seed, length in enumerate(lengths)]
    padded = np.random.default_rng(0).standard_normal((len(lengths), 40_000)).astype(np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    for length, wave, (units, durations) in zip(lengths, waves, encoder.encode(padded, lengths), strict=True):
        alone = encoder.encode_one(wave)
        assert np.array_equal(units, alone.units) and np.array_equal(durations, alone.durations)
        assert durations.sum(dtype=int) == length // 640
        assert (np.diff(units.astype(int)) != 0).all()
    assert len({tuple(each.units) for each in encoder.encode(padded, lengths)}) == len(lengths)


def test_hubert_features_do_not_depend_on_the_batch(hubert_folder) -> None:
    features = HubertFeatures.open(hubert_folder, 2, "cpu")
    long, short = babble(2, 1), babble(1, 2)
    padded = np.stack([long, np.concatenate([short, np.full(len(long) - len(short), 9, np.float32)])])
    together = features.features(padded, np.array([len(long), len(short)]))
    alone = features.features(short[None], np.array([len(short)]))[0]
    assert np.abs(together[1] - alone).max() < 1e-5 * np.abs(alone).max()


def test_hubert_is_the_published_form(hubert_folder) -> None:
    """Hidden states as transformers computes them, with 40 zeros on each side; and the published size."""
    config = transformers.HubertConfig(**SMALL, num_feat_extract_layers=8)
    theirs = transformers.HubertModel(config).eval()
    ours = HubertFeatures.open(hubert_folder, 2, "cpu")
    theirs.load_state_dict(ours.model.state_dict())
    wave = babble(1)
    with torch.no_grad():
        padded = torch.nn.functional.pad(torch.from_numpy(wave)[None], (40, 40))
        want = theirs(padded, output_hidden_states=True).hidden_states[2][0].numpy()
    got = ours.features(wave[None], np.array([len(wave)]))[0]
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    with torch.device("meta"):
        published = Hubert(HubertConfig())
    assert sum(parameter.numel() for parameter in published.parameters()) == 94_896_000


def test_geometry_of_both_published_rates() -> None:
    """floor(L / hop) frames at 25 and at 50 Hz; the clips of 14.085 s and 15.945 s give 352 and 398."""
    slow = HubertConfig()
    fast = HubertConfig(conv_dim=(512,) * 7, conv_kernel=slow.conv_kernel[:7], conv_stride=slow.conv_stride[:7])
    for config, hop in ((slow, 640), (fast, 320)):
        lengths = torch.tensor([hop, 12_345, 15_999, 16_000, 16_640, 32_000, 225_360, 255_120])
        assert (config.hop, config.padding) == (hop, 40)
        assert torch.equal(config.frames(lengths + 80), lengths // hop)
    assert slow.frames(torch.tensor([225_360, 255_120]) + 80).tolist() == [352, 398]


def test_mel_units_ignore_the_gain() -> None:
    encoder, wave = open_encoder(), babble(1.5)
    assert np.array_equal(encoder.encode_one(wave).units, encoder.encode_one(0.3 * wave).units)


def test_fingerprints_differ_whenever_units_do(hubert_folder) -> None:
    """Another backend, codebook, layer or option is another fingerprint (one file name for all codebooks is not)."""
    found = encoders(hubert_folder)
    folder, codebook = str(hubert_folder), str(hubert_folder / "codebook.safetensors")
    others = [
        *found.values(),
        open_encoder("hubert", folder, 1, codebook),
        open_encoder(collapse=False),
        UnitEncoder(MelFeatures(), Codebook(Codebook.read(EMBEDDED).centroids[:50], None, None)),
    ]
    assert len({encoder.description.fingerprint for encoder in others}) == len(others)
    assert open_encoder().description == found["mel"].description


def test_a_codebook_of_other_features_is_refused(hubert_folder) -> None:
    with pytest.raises(InputError, match="20 features|centroids have 32"):
        open_encoder("mel", codebook=str(hubert_folder / "codebook.safetensors"))
    other = Codebook(np.zeros((3, 39), np.float32), None, {"backend": "mel", "weights_sha256": "", "options": {}})
    with pytest.raises(InputError, match="fitted on"):
        UnitEncoder(MelFeatures(), other)


def test_a_description_cannot_be_edited(tmp_path) -> None:
    description = open_encoder().description
    description.write(tmp_path)
    assert UnitDescription.read(tmp_path / "units.json") == description
    path = tmp_path / "units.json"
    path.write_text(path.read_text().replace('"units": 100', '"units": 101'))
    with pytest.raises(InputError, match="was edited"):
        UnitDescription.read(path)


def test_without_collapsing_every_frame_is_a_unit() -> None:
    wave = babble(1)
    every, runs = open_encoder(collapse=False).encode_one(wave), open_encoder().encode_one(wave)
    assert (every.durations == 1).all() and len(every.units) == 25 > len(runs.units)
    assert np.array_equal(np.repeat(runs.units, runs.durations), every.units)


def test_collapse_counts_runs() -> None:
    units, durations = collapse(np.array([4, 4, 0, 7, 7, 7, 4]))
    assert units.tolist() == [4, 0, 7, 4] and durations.tolist() == [2, 1, 3, 1]
    with pytest.raises(InputError, match="--vad"):
        collapse(np.zeros(70_000, np.int64))


def test_kmeans_finds_separate_clusters() -> None:
    random = np.random.default_rng(0)
    centres = random.uniform(-50, 50, (8, 5))
    points = (centres[random.integers(8, size=2000)] + random.standard_normal((2000, 5))).astype(np.float32)
    found = kmeans.fit(points, 8, seed=3)
    assert np.array_equal(found, kmeans.fit(points, 8, seed=3))
    nearest = np.linalg.norm(centres[:, None] - found, axis=2).min(axis=1)
    assert nearest.max() < 0.5
    with pytest.raises(ValueError, match="distinct"):
        kmeans.fit(np.ones((10, 2), np.float32), 3, seed=0)


def test_phones_are_refused_or_counted_like_every_backend() -> None:
    try:
        encoder = open_encoder("phones")
    except InputError as error:
        assert "pip install hama" in str(error)
        return
    assert encoder.encode_one(babble(1)).durations.sum() == 50
