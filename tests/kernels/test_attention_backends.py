"""Attention by other packages: their published signatures, kept by stubs that compute the definition; the reasons.

A stub takes exactly the arguments that the package publishes and checks shapes, dtypes and layouts. What can run on a
CPU runs for itself: flex_attention's forward.
"""

import dataclasses
import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from numerics import run

from hotplate.kernels import backends
from hotplate.kernels.attention import adapters, attention, choice, layout, reference
from hotplate.kernels.attention import native as form
from hotplate.kernels.attention.problem import Call, Problem
from hotplate.model import config as model_config
from hotplate.model.config import MixerConfig
from hotplate.train.commands.backends import main

H, HKV, K = 4, 2, 8
CU = torch.tensor([0, 1, 1, 8, 12, 12], dtype=torch.int32)  # over B * T = 12, rows of 6


@pytest.fixture(autouse=True)
def forget():
    yield
    for cached in (backends.broken, backends.version, adapters._varlen_keywords, choice._probed):
        cached.cache_clear()
    choice._SAID.clear()


def install(monkeypatch, name, **attributes):
    """A module of that name which is found, imported and has these attributes."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def documentwise(q, k, v, cu_q, cu_k, max_q, max_k, scale, left, softcap):
    """The definition per document on [P, H, K], after the checks that every package makes."""
    assert q.ndim == k.ndim == v.ndim == 3 and all(x.stride(-1) == 1 for x in (q, k, v))
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.is_contiguous() and cu_q.shape == cu_k.shape
    assert isinstance(max_q, int) and max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
    assert cu_q[0] == cu_k[0] == 0 and cu_q[-1] == len(q) and cu_k[-1] == len(k)
    window = None if left in (None, -1) else left + 1
    outs = []
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        if b > a:
            piece = (q[None, a:b], k[None, c:d], v[None, c:d])
            outs.append(reference.attention(*piece, None, scale, window, softcap or None)[0][0])
    return torch.cat(outs)


def flash_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert causal and not dropout_p
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return documentwise(q, k, v, *lengths, softmax_scale, window_size[0], softcap)


def flash_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal
    return documentwise(q, k, v, *lengths, softmax_scale, window_size[0], softcap)


def flash_4(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
    seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, aux_tensors=None, return_lse=False,
):  # fmt: skip
    """Returns (out, lse) whether asked or not."""
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal and -1 not in window_size
    return documentwise(q, k, v, *lengths, softmax_scale, window_size[0], softcap), None


def torch_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert enable_gqa == (query.shape[1] != key.shape[1]) and window_size[1] == 0
    return documentwise(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size[0], None)


class BottomRight:
    """xformers' mask object, as far as it is used."""

    def __init__(self, q_seqlen, kv_seqlen, window=-1):
        self.lengths, self.window = (q_seqlen, kv_seqlen), window

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert all(isinstance(n, int) and n > 0 for n in q_seqlen)
        return cls(q_seqlen, kv_seqlen)

    def make_local_attention(self, window_size):
        return BottomRight(*self.lengths, window_size)


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    """[1, P, H, K], or [1, P, groups, members, K] with keys that are the same for all members."""
    assert len(query) == 1 and query.ndim == key.ndim and query.shape[2:] == key.shape[2:] == value.shape[2:]
    if query.ndim == 5:
        assert key.stride(3) == value.stride(3) == 0
        key, value = key[:, :, :, 0], value[:, :, :, 0]
    edges = [torch.tensor([0, *n]).cumsum(0).int() for n in attn_bias.lengths]
    longest = [max(n) for n in attn_bias.lengths]
    flat = (query.flatten(2, -2)[0], key[0], value[0])
    left = attn_bias.window - 1 if attn_bias.window > 0 else None
    return documentwise(*flat, *edges, *longest, scale, left, None).view(query.shape)


def sdpa_of_cudnn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """[B, H, T, K]; only cuDNN may be allowed."""
    cuda = torch.backends.cuda
    assert cuda.cudnn_sdp_enabled() and not (cuda.flash_sdp_enabled() or cuda.math_sdp_enabled())
    assert attn_mask is None and is_causal and enable_gqa == (query.shape[1] != key.shape[1])
    out, _ = reference.attention(*(x.transpose(1, 2) for x in (query, key, value)), None, scale)
    return out.transpose(1, 2)


@pytest.fixture
def packages(monkeypatch):
    """All packages at once, on a device of compute capability 9.0."""
    install(monkeypatch, "flash_attn", flash_attn_varlen_func=flash_2)
    install(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=flash_3)
    install(monkeypatch, "flash_attn.cute", flash_attn_varlen_func=flash_4)
    install(monkeypatch, "xformers")
    install(monkeypatch, "xformers.ops", memory_efficient_attention=memory_efficient_attention)
    bias = install(monkeypatch, "xformers.ops.fmha.attn_bias", BlockDiagonalCausalFromBottomRightMask=BottomRight)
    install(monkeypatch, "xformers.ops.fmha", attn_bias=bias)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_varlen)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa_of_cudnn)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(backends, "capability", lambda device=None: (9, 0))
    monkeypatch.setattr(backends, "_inside", lambda module: True)


def problem(**changes):
    base = Problem(
        B=2, T=6, S=6, H=H, Hkv=HKV, K=64, dtype=torch.bfloat16, device=torch.device("cuda"), packed=True
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


SERVED = {  # features that each backend has, as options of a call
    "flash": [{}, {"window": 3}, {"softcap": 2.0}, {"S": 9}],
    "fa3": [{}, {"window": 3}, {"softcap": 2.0}, {"S": 9}],
    "fa4": [{}, {"window": 3}, {"S": 9}],
    "varlen": [{}, {"window": 3}, {"S": 9}],
    "xformers": [{}, {"window": 3}, {"S": 9}],
    "cudnn": [{"packed": False}],
    "flex": [{}, {"window": 3}, {"softcap": 2.0}, {"S": 9}, {"lse": True}],
}
PAIRS = [(name, options) for name, served in SERVED.items() for options in served]


@pytest.mark.parametrize(("name", "options"), PAIRS, ids=str)
def test_adapters_call_as_published(name, options, packages):
    options = dict(options)
    S, lse = options.pop("S", 6), options.get("lse", False)
    packed = options.pop("packed", S == 6)
    leaves = [torch.randn(2, 6, H, K)] + [torch.randn(2, S, HKV, K) for _ in range(2)]
    served = problem(S=S, packed=packed, gradient=True, **{n: bool(x) for n, x in options.items()})
    backend = choice.BACKENDS[name]
    assert backend.reasons(served) == []
    call = {"scale": 0.3, "window": None, "softcap": None, "lse": False} | options
    documents = CU if packed else None
    truth_call = Call(q=leaves[0], k=leaves[1], v=leaves[2], documents=documents, **call)
    truth = choice.BACKENDS["reference"].attend(truth_call)
    if name == "flex":  # itself, on a CPU, which has no backward
        found = backend.attend(truth_call)
    else:

        def whole(q, k, v):
            at = layout(documents, 2, 6, S)
            return backend.attend(Call(q=q, k=k, v=v, documents=at, **call))[0]

        found = run(whole, leaves, [torch.ones(2, 6, H, K)])
    torch.testing.assert_close(found[0], truth[0], rtol=1e-5, atol=1e-6)
    if lse:
        torch.testing.assert_close(found[1], truth[1], rtol=1e-5, atol=1e-6)


REASONS = {  # what a backend cannot serve, and the words that say so
    "flash": [({"K": 260}, "head width of at most 256"), ({"lse": True}, "no lse"), ({"K": 12}, "multiple of 8")],
    "fa3": [({"dtype": torch.float32}, "needs bfloat16 or float16, got float32")],
    "fa4": [({"softcap": True, "gradient": True}, "no backward with a soft cap")],
    "varlen": [({"softcap": True}, "no soft cap")],
    "cudnn": [({}, "has no documents within rows"), ({"packed": False, "S": 7}, "needs T == S")],
    "xformers": [({"window": True, "S": 7}, "another end")],
    "triton": [({"K": 257}, "at most 256"), ({"K": 136, "dtype": torch.float32}, "at most 128 in this dtype"),
               ({"positive_scale": False}, "a scale above 0"), ({"dtype": torch.float64}, "got float64")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "words"), [(n, *case) for n, cases in REASONS.items() for case in cases], ids=str
)
def test_reasons_name_what_is_lacking(name, changes, words, packages):
    found = choice.BACKENDS[name].reasons(problem(**changes))
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize(("least", "name"), [((8, 0), "flash"), ((9, 0), "fa4"), ((8, 0), "triton")])
def test_an_old_device_is_a_reason(least, name, packages, monkeypatch):
    monkeypatch.setattr(backends, "capability", lambda device=None: (7, 5))
    assert choice.BACKENDS[name].reasons(problem()) == [
        f"needs compute capability {least[0]}.{least[1]} or later, this device has (7, 5)"
    ]


def test_flash_attention_3_is_for_hopper_and_pypi_has_its_forward(packages, monkeypatch):
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    install(monkeypatch, "fa3_fwd_interface", flash_attn_varlen_func=flash_3)
    assert choice.BACKENDS["fa3"].reasons(problem()) == []
    assert "no backward" in "".join(choice.BACKENDS["fa3"].reasons(problem(gradient=True, window=True)))
    monkeypatch.setattr(backends, "capability", lambda device=None: (10, 0))
    assert choice.BACKENDS["fa3"].reasons(problem()) == ["is for compute capability 9"]


def test_a_named_backend_that_cannot_serve_says_every_reason():
    x = torch.randn(1, 4, 2, 12)
    with pytest.raises(ValueError, match=r"^attention: .*impl='flash' serves, got q \[1, 4, 2, 12\].*float32 on cpu"):
        attention(x, x, x, impl="flash")
    with pytest.raises(ValueError, match="a CUDA tensor.*; needs bfloat16.*; .*multiple of 8.*; flash-attn is not"):
        attention(x, x, x, impl="flash")


def test_a_package_that_breaks_on_import_is_reported(monkeypatch, tmp_path):
    """The import is tried only when nothing else stands against it, and its words are kept."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    x = torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match="got one on cpu") as caught:
        attention(x, x, x, impl="flash")
    assert "libcudart" not in str(caught.value) and "flash_attn" not in sys.modules
    monkeypatch.setattr(backends, "capability", lambda device=None: (9, 0))
    (reason,) = choice.BACKENDS["flash"].reasons(problem())
    assert reason == "flash_attn does not import: ImportError: libcudart.so.13: no such file"


def test_auto_is_logged_once(caplog):
    x = torch.randn(1, 4, 2, 8)
    with caplog.at_level(logging.INFO, logger="hotplate.kernels.attention.choice"):
        for T in (4, 4, 3):
            attention(x[:, :T], x[:, :T], x[:, :T])
    (record,) = caplog.records
    found, _ = choice.automatic(problem(B=1, T=4, S=4, H=2, Hkv=2, K=8, dtype=x.dtype, device=x.device))
    assert record.message.startswith(f"attention: auto is {found} for q [1, 4, 2, 8]")


def test_auto_takes_triton_on_a_gpu_and_eager_where_triton_cannot(monkeypatch):
    monkeypatch.setattr(backends, "capability", lambda device=None: (9, 0))
    names = choice.FACTS
    for changes in ({}, {"dtype": torch.float64}, {"K": 512}, {"S": 9}):
        facts = problem(**changes)
        want = "eager" if changes else "triton"
        assert choice._decided("auto", *(getattr(facts, name) for name in names)) == want


def test_apex_on_pypi_is_another_project(monkeypatch, tmp_path):
    rows = {row.name: row for row in backends.optimizers()}
    assert rows["torch"].available and not rows["apex"].available
    assert "another project" in rows["apex"].reason
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (apex,) = (row for row in backends.optimizers() if row.name == "apex")
    assert apex.reason.startswith("apex has no apex.optimizers; NVIDIA's is built from source")


def test_a_mixer_knows_the_names_of_its_kernel():
    assert set(model_config.ATTENTION_IMPLS) == {"auto", *choice.BACKENDS}
    assert MixerConfig(impl="flash").impl == "flash"
    with pytest.raises(ValueError, match=r"want impl in \['auto', .*'native'\] for kind qlstm, got 'flash'"):
        MixerConfig(kind="qlstm", impl="flash")
    with pytest.raises(ValueError, match="mixer: want impl in"):
        MixerConfig(impl="sdpa")


def test_the_command_lists_every_backend(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "backends.json"), "--dtype", "float32"]) == 0
    body = json.loads((tmp_path / "backends.json").read_text())
    found = {(row["part"], row["name"]): row for row in body["backends"]}
    assert {name for part, name in found if part == "attention"} == set(choice.BACKENDS)
    assert {name for part, name in found if part == "optimiser"} == {"torch", "triton", "apex", "deepspeed"}
    assert found["attention", "eager"]["available"] and "lstm native" in {name for _, name in found}
    assert f"{'native' if form.pays() else 'eager'} (auto)" in capsys.readouterr().out
    assert all(row["reason"] for row in body["backends"])
