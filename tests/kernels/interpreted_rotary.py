"""rotary's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, check, run

from hotplate.kernels.rotary import cut_heads, rotation, streaming

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(shape, normed, dtype=torch.float32):
    B, T, H, G, K = shape
    weights = [(0.5 + torch.rand(K)).to(dtype) for _ in range(2 if normed else 0)]
    return [torch.randn(B, T, H + 2 * G, K).to(dtype), *weights]


def form(shape, turned, impl):
    B, T, H, _, K = shape
    turn = rotation(torch.arange(T).repeat(B, 1) % 4, K, 1e4) if turned else None
    return lambda qkv, *weights: cut_heads(qkv, H, turn, *weights, eps=1e-3, impl=impl)


@pytest.mark.parametrize(("turned", "normed"), [(True, True), (True, False), (False, True)])
def test_error_is_within_budget(turned, normed):
    for shape, dtype in (
        ((1, 6, 1, 1, 6), torch.float32),
        ((1, 2, 9, 3, 64), torch.bfloat16),
    ):
        check(form(shape, turned, "triton"), form(shape, turned, "reference"), inputs(shape, normed, dtype))


def test_stripes_of_several_items_join_and_runs_repeat(monkeypatch):
    monkeypatch.setattr(streaming, "STRIPES", 3)
    monkeypatch.setattr(streaming, "BLOCK_PAIRS", 32)  # two heads of an item
    shape = (1, 4, 3, 1, 8)
    arguments, upstream = inputs(shape, True), [torch.randn(1, 4, n, 8) for n in (3, 1, 1)]
    check(form(shape, True, "triton"), form(shape, True, "reference"), arguments)
    for a, b in zip(*(run(form(shape, True, "triton"), arguments, upstream) for _ in range(2)), strict=True):
        assert_bitwise("again", a, b)


def test_values_are_copied_and_the_operator_keeps_its_promises_to_torch():
    qkv, *weights = inputs((1, 4, 2, 1, 8), True)
    turn = rotation(torch.arange(4)[None], 8, 1e4)
    assert_bitwise("v", cut_heads(qkv, 2, turn, impl="triton")[2], qkv[:, :, 3:])
    torch.library.opcheck(streaming.operator, (qkv, 2, *turn, *weights, 1e-5), test_utils=("test_schema",))
