"""Units back to sound: Griffin-Lim hits the mel frames, the unit vocoder has the published structure."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from speech_waves import RATE, babble

from hotplate.train.errors import InputError
from hotplate.train.speech.codebook import EMBEDDED, Codebook
from hotplate.train.speech.griffin_lim import griffin_lim, resynthesise, unit_mel
from hotplate.train.speech.mel import log_mel
from hotplate.train.speech.vocoder import DurationConfig, UnitVocoder, VocoderConfig


def test_griffin_lim_hits_the_spectrum() -> None:
    """The mel frames of what it makes are those that were asked for, far nearer than silence or noise of that power."""
    wave = babble(1.6)
    mel = log_mel(wave)
    made = griffin_lim(mel)
    assert made.shape == (RATE * 8 // 5,) and np.isfinite(made).all()
    again = log_mel(made)
    noise = log_mel(np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32))
    loud = mel > mel.max() - 8
    assert np.abs(again - mel)[loud].mean() < 0.35 * np.abs(noise - mel)[loud].mean()


def test_units_are_played_at_their_durations() -> None:
    codebook = Codebook.read(EMBEDDED)
    units, durations = np.array([5, 80, 5]), np.array([2, 1, 4])
    assert unit_mel(codebook, units, durations, 4).shape == (28, 64)
    wave = resynthesise(codebook, units, durations, 4)
    assert len(wave) == 7 * 640 and np.abs(wave).max() > 0.05
    assert np.array_equal(wave, resynthesise(codebook, units, durations, 4))
    with pytest.raises(InputError, match="no mel frames"):
        resynthesise(Codebook(codebook.centroids, None, None), units, durations, 4)


def test_play_writes_wav(recordings: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("encode", recordings / "a" / "10.wav", "-o", tmp_path / "units")
    run("play", tmp_path / "units", "-o", tmp_path / "out.wav", "--name", "10.wav")
    wave, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == RATE and len(wave) == 40 * 640
    _, errors = run("play", tmp_path / "units", "-o", tmp_path / "out.wav", "--name", "11.wav", expect=2)
    assert "no utterance '11.wav'" in errors
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("3 4 5"))
    run("play", "-", "-o", tmp_path / "numbers.wav", "--frames", 3)
    assert soundfile.info(tmp_path / "numbers.wav").frames == 9 * 640


SMALL = VocoderConfig(
    num_embeddings=20,
    embedding_dim=16,
    upsample_initial_channel=64,
    dur_predictor_params=DurationConfig(encoder_embed_dim=16, var_pred_hidden_dim=24),
)


def weight_normed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the generator's convolutions as published files have them: direction and length."""
    made = {}
    for name, tensor in state.items():
        if name.endswith("weight") and name.split(".")[0] in ("conv_pre", "conv_post", "ups", "resblocks"):
            made[f"{name}_v"] = 3 * tensor
            made[f"{name}_g"] = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
        else:
            made[name] = tensor
    return made


@pytest.fixture
def vocoder_folder(tmp_path: Path) -> Path:
    """A small random vocoder of the published form, as its files."""
    torch.manual_seed(1)
    save_file(weight_normed(UnitVocoder(SMALL).state_dict()), tmp_path / "model.safetensors")
    content = {**vars(SMALL), "dur_predictor_params": {**vars(SMALL.dur_predictor_params), "var_pred_dropout": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_a_vocoder_from_its_files(vocoder_folder: Path) -> None:
    """Weight normalisation is folded; a frame is 640 samples; durations are given or predicted."""
    torch.manual_seed(1)
    want, got = UnitVocoder(SMALL).eval(), UnitVocoder.open(vocoder_folder)
    units = np.array([3, 19, 0, 7])
    wave = got.speak(units, np.array([1, 2, 1, 3]))
    assert wave.shape == (7 * 640,) and np.abs(wave).max() <= 1
    assert np.abs(wave - want.speak(units, np.array([1, 2, 1, 3]))).max() < 1e-6
    predicted = got.durations(units)
    assert predicted.min() >= 1 and len(got.speak(units)) == predicted.sum() * 640
    assert not np.array_equal(wave, got.speak(units[::-1].copy(), np.array([1, 2, 1, 3])))
    with pytest.raises(InputError, match="below 20"):
        got.speak(np.array([20]))


def test_a_vocoder_of_other_weights_is_refused(vocoder_folder: Path) -> None:
    weights = load_file(vocoder_folder / "model.safetensors")
    del weights["dict.weight"]
    save_file(weights, vocoder_folder / "model.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        UnitVocoder.open(vocoder_folder)


def test_the_published_vocoder_geometry() -> None:
    with torch.device("meta"):
        vocoder = UnitVocoder(VocoderConfig())
    assert vocoder.config.hop == 640
    assert vocoder.state_dict()["ups.4.weight"].shape == (32, 16, 4) and len(vocoder.resblocks) == 15
