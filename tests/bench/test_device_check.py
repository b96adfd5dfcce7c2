"""The check that runs first on a GPU machine, here on the CPU's kernels: right ones pass, wrong ones are caught."""

import dataclasses

import pytest
import torch

from hotplate.bench import device_check
from hotplate.kernels import native
from hotplate.kernels.newton_schulz import newton_schulz

FLAGS = ["--quick", "--device", "cpu", "--dtypes", "float32"]


IMPLS = ["eager"] if native.why_not("qlstm") else ["eager", "native"]  # native needs a C compiler


@pytest.mark.parametrize("impl", IMPLS)
def test_right_kernels_pass(impl: str, capsys) -> None:
    assert device_check.main([*FLAGS, "--impl", impl]) == 0
    out = capsys.readouterr().out
    assert "0 wrong" in out and "refused" not in out and "lstm_dense" in out
    assert ("newton_schulz" in out) == (impl == "eager")


@pytest.mark.parametrize("defect", ["value", "gradient", "nan", "repetition"])
def test_wrong_kernels_are_caught(defect: str, monkeypatch, capsys) -> None:
    check, B, T = next(device_check.checks(quick=True))
    calls = []

    def wrong(gates, *others, impl, **options):
        if impl == "reference":
            return check.op(gates, *others, impl=impl, **options)
        calls.append(impl)
        if defect == "gradient":
            gates = gates + 1e-3 * (gates - gates.detach())
        h, c = check.op(gates, *others, impl=impl, **options)
        if defect == "value":
            h = h * 1.001
        if defect == "nan":
            h = torch.where(torch.arange(h.shape[1])[:, None] == 3, float("nan"), h)
        if defect == "repetition":
            h = h + 1e-7 * len(calls)
        return h, c

    planted = dataclasses.replace(check, op=wrong)
    monkeypatch.setattr(device_check, "checks", lambda quick: iter([(planted, B, T)]))
    assert device_check.main([*FLAGS, "--impl", "eager"]) == 1
    assert "WRONG" in capsys.readouterr().out


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
