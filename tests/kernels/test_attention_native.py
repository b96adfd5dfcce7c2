"""Attention in C against the definition: the error rule, documents, threads, vectors of every width."""

import pytest
import torch
from numerics import assert_bitwise, check, run
from packings import FEATURES, PACKED, SHAPES, documents, inputs
from processors import OLDER, built_for, needs_older
from torch.utils.flop_counter import FlopCounterMode

from hotplate.kernels import native
from hotplate.kernels.attention import attention, choice, layout
from hotplate.kernels.attention import native as form
from hotplate.kernels.product.native import panels

pytestmark = [
    pytest.mark.skipif(native.why_not("attention") is not None, reason="no C compiler"),
    pytest.mark.usefixtures("poisoned_memory", "poisoned_panels"),
]
WIDTHS = (1, 15, 16, 17, 33, 64, 96, 200, 256)
LONG = (1, 300, 300, 2, 1, 32)  # blocks of 32 and pairs of them, past both
CAPPED = {"window": 70, "softcap": 1.5}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def poisoned_panels():
    """The memory that calls use again is new, and so poisoned."""
    panels.memory = torch.empty(0, dtype=torch.uint8)


def c_form(*places, **options):
    return lambda *leaves: attention(*leaves, *places, impl="native", **options)


def definition(*places, **options):
    return lambda *leaves: attention(*leaves, *places, impl="reference", **options)


def check_both(draw, *places, **options):
    check(c_form(*places, **options), definition(*places, **options), draw)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [{}, *FEATURES, CAPPED], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, LONG], ids=str)
def test_error_is_within_budget(shape, features, dtype):
    check_both(lambda: inputs(*shape, dtype), return_lse=True, **features)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", WIDTHS)
def test_error_is_within_budget_for_any_width(K, dtype):
    check_both(lambda: inputs(1, 70, 70, 2, 1, K, dtype), return_lse=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [{}, *FEATURES], ids=str)
@pytest.mark.parametrize("packing", sorted(PACKED))
def test_error_is_within_budget_for_packed_documents(packing, features, dtype):
    check_both(lambda: inputs(2, 6, 6, 4, 2, 8, dtype), PACKED[packing], return_lse=True, **features)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [4.0, -4.0, 40.0])
def test_error_is_within_budget_for_large_scores(scale, dtype):
    """Where one key has nearly all the weight, gradients are differences of nearly equal numbers."""
    check_both(lambda: inputs(1, 100, 100, 2, 1, 16, dtype), scale=scale, return_lse=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_does_not_grow_with_the_length(dtype):
    check_both(inputs(1, 2500, 2500, 1, 1, 16, dtype), return_lse=True)


def results(leaves, upstream, *places, **options):
    return run(c_form(*places, return_lse=True, **options), leaves, upstream)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [{}, CAPPED], ids=str)
def test_packed_documents_are_each_document_alone(features, dtype):
    """Bitwise, forward and every gradient, whatever lies beside; a layout stands for its cu_seqlens."""
    lengths = [0, 1, 2, 31, 32, 33, 0, 64, 65, 100, 7, 0]
    edges = torch.tensor([0, *lengths]).cumsum(0).tolist()
    T = edges[-1]
    leaves, upstream = inputs(1, T, T, 4, 2, 24, dtype), [torch.randn(1, T, 4, 24), torch.randn(1, 4, T)]
    packed = results(leaves, upstream, layout(documents(*edges), 1, T), **features)
    for start, stop in zip(edges, edges[1:], strict=False):
        if start == stop:
            continue
        span = slice(start, stop)
        above = [upstream[0][:, span], upstream[1][:, :, span]]
        alone = results([x[:, span] for x in leaves], above, **features)
        for n, (mine, other) in enumerate(zip(packed, alone, strict=True)):
            part = mine[:, :, span] if n == 1 else mine[:, span]
            assert_bitwise(f"result {n} of document {start}..{stop}", part, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [{}, CAPPED], ids=str)
def test_threads_do_not_matter(features, dtype):
    leaves, upstream = inputs(2, 150, 150, 6, 2, 32, dtype), [torch.randn(2, 150, 6, 32), torch.randn(2, 6, 150)]
    places = documents(0, 3, 90, 210, 211, 300)
    first = results(leaves, upstream, places, **features)
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for n, (mine, other) in enumerate(zip(results(leaves, upstream, places, **features), first, strict=True)):
                assert_bitwise(f"result {n} with {threads} threads", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_a_group_are_added_in_their_order(dtype):
    """With more threads than processors some head is put off while later ones of its group finish."""
    leaves, upstream = inputs(1, 400, 400, 8, 1, 32, dtype), [torch.randn(1, 400, 8, 32), torch.randn(1, 8, 400)]
    first = results(leaves, upstream)
    try:
        torch.set_num_threads(8)
        for _ in range(6):
            for n, (mine, other) in enumerate(zip(results(leaves, upstream), first, strict=True)):
                assert_bitwise(f"result {n}", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_other_documents_may_hold_anything(poison, dtype):
    """Poison in all operands of one document, in the gradients too, leaves its neighbours' bits."""
    bad = slice(40, 75)
    places = documents(0, 40, 75, 120)
    leaves, upstream = inputs(1, 120, 120, 2, 1, 24, dtype), [torch.randn(1, 120, 2, 24), torch.randn(1, 2, 120)]
    clean = results(leaves, upstream, places)
    for x in (*leaves, upstream[0]):
        x[:, bad] = poison
    upstream[1][:, :, bad] = poison
    good = torch.ones(120, dtype=torch.bool)
    good[bad] = False
    for n, (mine, other) in enumerate(zip(results(leaves, upstream, places), clean, strict=True)):
        where = (slice(None), slice(None), good) if n == 1 else (slice(None), good)
        assert_bitwise(f"result {n}", mine[where], other[where])
        assert mine[:, :, bad].isnan().all() if n == 1 else mine[:, bad].isnan().all()


def test_later_keys_and_keys_before_the_window_do_not_matter():
    q, k, v = inputs(1, 90, 90, 2, 1, 16)
    before = attention(q, k, v, window=20, impl="native")[:, 50:70].clone()
    k[:, 70:], v[:, 70:], k[:, :31], v[:, :31] = 1e3, -1e3, 1e3, -1e3
    assert_bitwise("out", attention(q, k, v, window=20, impl="native")[:, 50:70], before)


@pytest.mark.parametrize("T", [1, 3, 40])
def test_queries_are_the_end_of_the_keys(T):
    q, k, v = inputs(2, 70, 70, 4, 2, 16)
    whole = attention(q, k, v, impl="native")
    torch.testing.assert_close(attention(q[:, -T:], k, v, impl="native"), whole[:, -T:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    """Heads of one projection, heads before positions, features that do not adjoin, gradients too."""
    q, k, v = torch.randn(2, 40, 4, 24, dtype=dtype).split([2, 1, 1], dim=2)
    upstream = torch.randn(2, 2, 40, 24, dtype=dtype).transpose(1, 2)
    dense = run(c_form(), [x.contiguous() for x in (q, k, v)], [upstream.contiguous()])
    for leaves in (
        (q, k, v),
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)],
    ):
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = attention(*leaves, impl="native")
        for mine, other in zip([out, *torch.autograd.grad(out, leaves, upstream)], dense, strict=True):
            assert_bitwise("strided", mine, other)


def test_a_gradient_may_come_through_lse_alone():
    leaves = [x.requires_grad_() for x in inputs(1, 40, 40, 2, 1, 16)]
    found, want = (
        torch.autograd.grad(attention(*leaves, return_lse=True, impl=impl)[1].square().sum(), leaves[:2])
        for impl in ("native", "reference")
    )
    for mine, other in zip(found, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator_keeps_its_promises_to_torch(dtype):
    q, k, v = (x.flatten(0, 1).requires_grad_() for x in inputs(2, 6, 6, 2, 1, 16, dtype))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for places, features in ((None, (None, None)), (documents(0, 2, 12), (3, 2.0))):
        torch.library.opcheck(form.operator, (q, k, v, places, 6, 6, 0.25, *features), test_utils=checks)


@pytest.mark.parametrize("impl", ["native", "auto"])
def test_a_compiled_function_holds_it_whole(impl, monkeypatch):
    monkeypatch.setattr(form, "pays", lambda: True)
    choice._probed.cache_clear()
    at = layout(documents(0, 2, 6), 1, 6)
    leaves = [x.requires_grad_() for x in inputs(1, 6, 6, 2, 1, 16)]

    def function(q, k, v):
        out, lse = attention(2 * q, k, v, at, return_lse=True, impl=impl)
        return out.sum() + lse.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, want = (torch.autograd.grad(form_(*leaves), leaves) for form_ in (compiled, function))
    for mine, other in zip(found, want, strict=True):
        assert_bitwise("compiled", mine, other)
    choice._probed.cache_clear()


def test_flops_are_those_of_the_scores_seen():
    q, k, v = (x.requires_grad_() for x in inputs(2, 8, 8, 4, 2, 16))
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v, impl="native").sum().backward()
    assert counter.get_total_flops() == 7 * 2 * 2 * 4 * 16 * (8 * 9 // 2)


def test_an_empty_batch_is_empty():
    assert attention(*(x[:0] for x in inputs(1, 6, 6, 2, 1, 16)), impl="native").shape == (0, 6, 2, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_refused(dtype):
    leaves = inputs(1, 4, 4, 2, 1, 8, dtype)
    with pytest.raises(ValueError, match=r"^attention: .*impl='native' serves, got .*: needs float32 or bfloat16, got"):
        attention(*leaves, impl="native")


def test_auto_is_c_where_it_was_measured_to_pay(monkeypatch):
    problem = form.Problem(
        B=1, T=4, S=4, H=2, Hkv=1, K=8, dtype=torch.float32, device=torch.device("cpu"), packed=False
    )
    monkeypatch.setattr(form, "pays", lambda: True)
    assert choice.automatic(problem) == ("native", "")
    monkeypatch.setattr(form, "pays", lambda: False)
    assert choice.automatic(problem) == ("eager", "native: not measured to be faster on this processor")
    monkeypatch.setattr(native, "why_not", lambda room: "no C compiler: none\nat all")
    assert choice.automatic(problem) == ("eager", "native: no C compiler: none")
    with pytest.raises(ValueError, match="serves, got .*no C compiler"):
        choice._probed.__wrapped__("native", *(getattr(problem, name) for name in choice.FACTS))


@needs_older
@pytest.mark.parametrize("processor", OLDER)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_within_budget_on_older_processors(processor, dtype):
    """No products of pairs in bf16; 8 and 4 lanes; tiles of 6 keys, which do not divide a vector."""
    with built_for(processor, form._library):
        for features in ({}, CAPPED):
            draw = inputs(1, 120, 120, 2, 1, 24, dtype)
            check_both(draw, documents(0, 40, 41, 120), return_lse=True, **features)
