"""Weights find their places in Languini Kitchen's models; the models themselves are not here, only their names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hotplate.bench import languini
from hotplate.bench.peers import peers
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.throughput import random_batch

SMALL = dict(layers=2, width=16, ffn=24, vocab=32, context=languini.STEPS)
MIXER = dict(heads=2, head_width=4)
MODEL = """
import torch
from lib import HEADS
DEFAULT_CONFIG = {"is_quasi": None}

class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        c, D = config, config.n_heads * config.head_dim
        shapes = {"input_embedding.weight": (c.vocab_size, c.h_dim), "linear.weight": (c.vocab_size, c.h_dim)}
        shapes |= {"ln_f.weight": (c.h_dim,), "ln_f.bias": (c.h_dim,)}
        if GPT:
            shapes["position_embedding.weight"] = (c.seq_len, c.h_dim)
        for n in range(c.n_layers):
            sizes = {"ln1": None, "ln2": None, "mlp.c_fc": (c.mlp_dim, c.h_dim), "mlp.c_proj": (c.h_dim, c.mlp_dim)}
            names = ["attn.linear_" + a for a in "QKV"] if GPT else ["rnn.linear_" + a + "x" for a in "FIZO"]
            sizes |= {name: (D, c.h_dim) for name in names}
            sizes["attn.linear_O" if GPT else "rnn.linear_post_head"] = (c.h_dim, D)
            if not GPT and not c.is_quasi:
                sizes |= {"rnn.linear_" + a + "h": (c.head_dim, c.head_dim) for a in "FIZO"}
            for name, size in sizes.items():
                shapes[f"layers.{n}.{name}.weight"] = size or (c.h_dim,)
                shapes[f"layers.{n}.{name}.bias"] = (size or (c.h_dim,))[:1]
        for name, shape in shapes.items():
            at, *path = self, *name.split(".")
            for part in path[:-1]:
                if part not in at._modules:
                    at.add_module(part, torch.nn.Module())
                at = at._modules[part]
            at.register_parameter(path[-1], torch.nn.Parameter(torch.full(shape, float("nan"))))
        if not GPT:
            self.layers._modules["0"].rnn.register_buffer("ones_mask", torch.ones(2))

    def get_init_state(self, rows, device):
        return rows, device

    def forward(self, x, state):
        assert state == (len(x), "cpu")
        return torch.nn.functional.linear(self.input_embedding.weight[x], self.linear.weight), None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch) -> None:
    for project in ("gpt", "lstm"):
        folder = tmp_path / "languini" / "projects" / project
        folder.mkdir(parents=True)
        (folder / "lib.py").write_text(f"HEADS = '{project}'\n")
        (folder / "model.py").write_text(
            f"GPT = {project == 'gpt'}\nassert True\n{MODEL}\nassert HEADS == '{project}'\n"
        )
    for package in ("languini", "languini/projects"):
        (tmp_path / package / "__init__.py").touch()
    for name in ("munch", "psutil", "sentencepiece"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in languini.sys.modules if name.split(".")[0] in ("languini", "munch")]:
        monkeypatch.delitem(languini.sys.modules, name)


def small(name: str, **mixer) -> ModelConfig:
    preset = PRESETS[name]
    return replace(preset, **SMALL, mixer=replace(preset.mixer, **MIXER, **mixer))


CONFIGS = [small("gpt-mini"), small("qlstm-mini"), small("lstm-mini", shared_recurrent=True)]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.mixer.kind)
def test_every_weight_has_one_place(config: ModelConfig) -> None:
    model = LanguageModel.build(config, 0)
    for p in model.parameters():
        p.data.normal_()
    build = languini.loss_of(config)
    assert build is not None and "Languini Kitchen" in peers(config, "cpu", False)
    loss, parameters = build(model)
    ours = sum(p.double().square().sum() for p in model.parameters())
    theirs = sum(p.double().square().sum() for p in parameters)
    torch.testing.assert_close(theirs, ours)  # none is lost, none is there twice
    batch = random_batch(config, 2, languini.STEPS, torch.device("cpu"))
    logits = model.embedding.weight[batch.tokens] @ model.head.weight.T
    torch.testing.assert_close(loss(batch), F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))


@pytest.mark.usefixtures("installed")
def test_other_models_are_not_its_own() -> None:
    assert languini.loss_of(small("lstm-mini")) is None  # a matrix per head
    assert languini.loss_of(PRESETS["decoder-nano"]) is None
    assert languini.loss_of(PRESETS["lstm-dense-mini"]) is None


def test_without_a_checkout_there_is_no_such_peer(monkeypatch) -> None:
    monkeypatch.setattr(languini, "NEEDS", ("languini_of_nowhere",))
    assert languini.loss_of(CONFIGS[0]) is None
