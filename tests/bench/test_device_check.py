"""The check that runs first on a GPU machine, here on the CPU's kernels: right ones pass, wrong ones are caught."""

import dataclasses

import pytest
import torch

from hotplate.bench import device_cases, device_check
from hotplate.kernels import native
from hotplate.kernels.adamw import adamw
from hotplate.kernels.newton_schulz import newton_schulz

FLAGS = ["--quick", "--device", "cpu", "--dtypes", "float32"]
ROOMS = ("qlstm", "lstm", "lstm_dense", "lstm_diagonal", "attention", "self_attention", "linear_cross_entropy")
ROOMS += ("linear_losses", "rmsnorm", "add_rmsnorm", "layernorm", "add_layernorm", "mlp", "rotary", "adamw")


IMPLS = ["eager"] if native.why_not("qlstm") else ["eager", "native"]  # native needs a C compiler


@pytest.mark.parametrize("impl", IMPLS)
def test_right_kernels_pass(impl: str, capsys) -> None:
    assert device_check.main([*FLAGS, "--impl", impl]) == 0
    out = capsys.readouterr().out
    assert "0 wrong" in out and "refused" not in out
    checked = {line.split()[1] for line in out.splitlines() if line.startswith("ok")}
    assert checked == {*ROOMS, *(["newton_schulz"] if impl == "eager" else [])}


@pytest.mark.parametrize("defect", ["value", "gradient", "nan", "repetition"])
def test_wrong_kernels_are_caught(defect: str, monkeypatch, capsys) -> None:
    case = next(device_cases.cases(quick=True, dtype=torch.float32, device="cpu"))
    calls = []

    def wrong(gates, *others, impl):
        if impl == "reference":
            return case.call(gates, *others, impl=impl)
        calls.append(impl)
        if defect == "gradient":
            gates = gates + 1e-3 * (gates - gates.detach())
        h, c = case.call(gates, *others, impl=impl)
        if defect == "value":
            h = h * 1.001
        if defect == "nan":
            h = torch.where(torch.arange(h.shape[1])[:, None] == 3, float("nan"), h)
        if defect == "repetition":
            h = h + 1e-7 * len(calls)
        return h, c

    planted = dataclasses.replace(case, call=wrong)
    assert not device_check.case_is_right(planted, torch.float32, "eager")
    monkeypatch.setattr(device_check, "cases", lambda *_: iter([planted]))
    assert device_check.main([*FLAGS, "--impl", "eager"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_only_refusals_in_their_words_are_no_error(capsys) -> None:
    case = next(device_cases.cases(quick=True, dtype=torch.float32, device="cpu"))

    def raising(text):
        def call(*leaves, impl):
            raise ValueError(text)

        return dataclasses.replace(case, call=call)

    assert device_check.case_is_right(raising("qlstm: want T >= 1, got 0; give rows"), torch.float32, "eager")
    assert "refused" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not in tuple"):
        device_check.case_is_right(raising("x not in tuple"), torch.float32, "eager")


@pytest.mark.parametrize("defect", ["value", "repetition"])
def test_wrong_products_are_caught(defect: str, monkeypatch, capsys) -> None:
    found = []

    def wrong(g, impl):
        true = newton_schulz(g, impl="eager" if impl == "triton" else impl)
        found.append(impl)
        if impl != "triton":
            return true
        return true * 1.001 if defect == "value" else true + 1e-7 * len(found)

    monkeypatch.setattr(device_check, "newton_schulz", wrong)
    options = device_check.Options(device="cpu", impl="triton")
    assert not device_check.orthogonal_is_right((2, 20, 30), torch.float32, options)
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("defect", ["value", "skipped", "copies"])
def test_wrong_updates_are_caught(defect: str, monkeypatch, capsys) -> None:
    def wrong(weights, *others, copies, skipped, impl, **options):
        if defect == "skipped" and impl == "eager":
            skipped = torch.zeros_like(skipped)
        adamw(weights, *others, copies=copies, skipped=skipped, impl=impl, **options)
        if impl == "eager" and defect == "value":
            weights[1].mul_(1.001)
        if impl == "eager" and defect == "copies":
            copies[0].add_(1.0)

    monkeypatch.setattr(device_check, "adamw", wrong)
    options = device_check.Options(device="cpu", impl="eager", quick=True)
    assert not device_check.adamw_is_right(defect == "copies", torch.bfloat16 if defect == "value" else None, options)
    assert "WRONG" in capsys.readouterr().out
