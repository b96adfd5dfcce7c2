import pytest
import torch
from numerics import assert_bitwise, check, run

from hotplate.kernels import native
from hotplate.kernels.rotary import cut_heads, rotation

pytestmark = pytest.mark.usefixtures("poisoned_memory")
FORMS = ["eager", *(["native"] if native.why_not("rotary") is None else [])]
SHAPES = [(1, 33, 1, 1, 2), (2, 9, 4, 2, 10), (1, 7, 3, 1, 18), (1, 5, 9, 3, 64)]  # B T H G K
CASES = [(True, True), (True, False), (False, True)]  # turned, normed


def inputs(shape, normed, dtype=torch.float32):
    B, T, H, G, K = shape
    weights = [(0.5 + torch.rand(K)).to(dtype) for _ in range(2 if normed else 0)]
    return [torch.randn(B, T, H + 2 * G, K).to(dtype), *weights]


def form(shape, turned, impl):
    B, T, H, _, K = shape
    turn = rotation(torch.arange(T).repeat(B, 1) % 4, K, 1e4) if turned else None  # documents of four steps
    return lambda qkv, *weights: cut_heads(qkv, H, turn, *weights, eps=1e-3, impl=impl)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("turned", "normed"), CASES)
def test_error_is_within_budget(turned, normed, dtype, impl):
    for shape in SHAPES:
        check(form(shape, turned, impl), form(shape, turned, "reference"), inputs(shape, normed, dtype))


def test_it_is_multiplication_by_a_complex_number_after_torchs_norm():
    qkv, q_weight, k_weight = inputs((2, 5, 3, 1, 8), True, torch.float64)
    positions = torch.randint(50, (2, 5))
    q, k, v = cut_heads(qkv, 3, rotation(positions, 8, 100.0), q_weight, k_weight, eps=1e-3)
    angles = positions[..., None, None].double() * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    for mine, heads, weight in ((q, qkv[:, :, :3], q_weight), (k, qkv[:, :, 3:4], k_weight)):
        normed = torch.nn.functional.rms_norm(heads, (8,), weight, 1e-3)
        turned = torch.complex(normed[..., :4], normed[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
        torch.testing.assert_close(mine, torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)
    assert_bitwise("v", v, qkv[:, :, 4:])


@pytest.mark.parametrize("impl", FORMS)
def test_the_gradient_is_the_rotation_by_the_negative_angle(impl):
    """Turning the gradient that arrives by -angle is what the backward does, to the last bit."""
    B, T, H, G, K = shape = (2, 9, 4, 2, 10)
    upstream = [torch.randn(B, T, n, K) for n in (H, G, G)]
    *_, gradient = run(form(shape, True, impl), inputs(shape, False), upstream)
    cosine, sine = rotation(torch.arange(T).repeat(B, 1) % 4, K, 1e4)
    back = cut_heads(torch.cat(upstream, 2), H, (cosine, -sine), impl=impl)
    assert_bitwise("dqkv", gradient, torch.cat(back, 2))


@pytest.mark.parametrize(("turned", "normed"), CASES)
def test_gradients_agree_with_differences(turned, normed):
    leaves = [x.requires_grad_() for x in inputs((1, 3, 2, 1, 4), normed, torch.float64)]
    assert torch.autograd.gradcheck(form((1, 3, 2, 1, 4), turned, "reference"), leaves)


@pytest.mark.parametrize("impl", FORMS)
def test_strides_threads_and_repetition_do_not_matter(impl):
    shape = (2, 20, 4, 2, 10)
    arguments, upstream = inputs(shape, True), [torch.randn(2, 20, n, 10) for n in (4, 2, 2)]
    first = run(form(shape, True, impl), arguments, upstream)
    strided = [arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *arguments[1:]]
    try:
        for threads, given in ((1, strided), (2, arguments)):
            torch.set_num_threads(threads if impl == "native" else 1)
            for mine, other in zip(run(form(shape, True, impl), given, upstream), first, strict=True):
                assert_bitwise(f"{threads} threads", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(FORMS == ["eager"], reason="no C compiler")
def test_without_weights_nothing_of_the_projection_is_kept():
    kept = []
    qkv = torch.randn(1, 4, 4, 8, requires_grad=True)
    turn = rotation(torch.arange(4)[None], 8, 1e4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        cut_heads(qkv, 2, turn, impl="native")
    assert sorted(kept) == [16, 16]


def test_neither_rotation_nor_norm_is_no_work():
    qkv = torch.randn(1, 4, 4, 8)
    assert [part.data_ptr() for part in cut_heads(qkv, 2)] == [part.data_ptr() for part in qkv.split([2, 1, 1], 2)]


QKV, TURN, WEIGHT = torch.zeros(1, 4, 4, 8), rotation(torch.arange(4)[None], 8, 1e4), torch.ones(8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cut_heads(QKV[0], 2), r"want qkv \[B, T, H \+ 2 G, K\] with heads = H, got \[4, 4, 8\]"),
        (lambda: cut_heads(QKV, 3), "with heads 3"),
        (lambda: cut_heads(QKV.int(), 2), "want a floating qkv"),
        (lambda: cut_heads(QKV[..., :7], 2, TURN), "want an even head width K, got 7"),
        (
            lambda: cut_heads(QKV[:, :3], 2, TURN),
            r"want cosine and sine float32 \[1, 3, 4\] on cpu, got .* \[1, 4, 4\]",
        ),
        (lambda: cut_heads(QKV, 2, TURN, WEIGHT), "want q_weight and k_weight together, got one"),
        (lambda: cut_heads(QKV, 2, TURN, WEIGHT, WEIGHT[:7]), r"want weights float \[8\] on cpu"),
        (lambda: cut_heads(QKV, 2, TURN, impl="apex"), "want impl in"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^rotary: {words}|^rotary: .*{words}"):
        call()


@pytest.mark.skipif(FORMS == ["eager"], reason="no C compiler")
def test_the_operator_keeps_its_promises_to_torch():
    from hotplate.kernels.rotary.native import operator

    qkv, *weights = (x.requires_grad_() for x in inputs((1, 4, 2, 1, 8), True))
    torch.library.opcheck(operator, (qkv, 2, *TURN, *weights, 1e-5))
