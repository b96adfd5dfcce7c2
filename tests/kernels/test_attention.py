import pytest
import torch
from numerics import assert_bitwise, check
from packings import FEATURES, PACKED, SHAPES, documents, inputs
from torch.nn.functional import scaled_dot_product_attention

from hotplate.kernels.attention import attention, layout, self_attention
from hotplate.kernels.attention.reference import visible

pytestmark = pytest.mark.usefixtures("poisoned_memory")

IMPLS = ("eager", "reference")


DIFFERENCES = [  # every two of a form, heads and a packing
    *(("eager", (2, 2), None), ("reference", (2, 2), "rows"), ("eager", (2, 2), "uneven")),
    *(("reference", (4, 2), None), ("eager", (4, 2), "rows"), ("reference", (4, 2), "uneven")),
    *(("eager", (3, 1), None), ("reference", (3, 1), "rows"), ("eager", (3, 1), "uneven")),
]


@pytest.mark.parametrize(("impl", "heads", "packing"), DIFFERENCES, ids=str)
def test_gradients_agree_with_differences(impl, heads, packing):
    leaves = [x.requires_grad_() for x in inputs(2, 6, 6, *heads, 3, torch.float64)]
    cu_seqlens = PACKED.get(packing)
    assert torch.autograd.gradcheck(lambda *leaves: attention(*leaves, cu_seqlens, scale=0.8, impl=impl), leaves)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_gradients_of_features_agree_with_differences(impl, features):
    leaves = [x.requires_grad_() for x in inputs(2, 6, 6, 2, 1, 2, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *leaves: attention(*leaves, PACKED["uneven"], return_lse=True, impl=impl, **features), leaves
    )


def masked_torch(cu_seqlens=None):
    """torch's attention with the whole mask: eager runs the same fused kernel, on fewer scores.

    That kernel's fp32 exponential is a fast one, and grouped heads sum their gradients in 16 bits: against the
    definition's own error its gradients pass the bound by up to 2.2 times.
    """

    def own(q, k, v):
        (B, T, H, _), (S, Hkv) = q.shape, k.shape[1:3]
        mask = visible(B, T, S, cu_seqlens, q.device)[:, None]
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=Hkv != H)
        return out.transpose(1, 2)

    return own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_budget(shape, dtype):
    check(
        lambda *leaves: attention(*leaves, impl="eager"),
        lambda *leaves: attention(*leaves, impl="reference"),
        inputs(*shape, dtype),
        own=masked_torch(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", sorted(PACKED))
def test_error_is_within_budget_for_packed_documents(packing, dtype):
    check(
        lambda *leaves: attention(*leaves, PACKED[packing], impl="eager"),
        lambda *leaves: attention(*leaves, PACKED[packing], impl="reference"),
        inputs(2, 6, 6, 4, 2, 8, dtype),
        own=masked_torch(PACKED[packing]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [{}, *FEATURES], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 140, 140, 2, 1, 4)], ids=str)
def test_explicit_form_is_within_the_definition_s_own_error(shape, features, dtype):
    check(
        lambda *leaves: attention(*leaves, return_lse=True, impl="eager", **features),
        lambda *leaves: attention(*leaves, return_lse=True, impl="reference", **features),
        inputs(*shape, dtype),
    )


@pytest.mark.parametrize("features", [{}, *FEATURES], ids=str)
def test_many_documents_are_computed_together(features):
    """Lengths 1 to 8, 60 to 70 and 130 among empty ones: padded groups, single documents, two explicit blocks."""
    lengths = [*range(9), 0, 3, 3, 64, 65, 60, 130, 8, 1, 1]
    edges = documents(*torch.tensor([0, *lengths]).cumsum(0).tolist())
    T = int(edges[-1])
    check(
        lambda *leaves: attention(*leaves, edges, impl="eager", **features),
        lambda *leaves: attention(*leaves, edges, impl="reference", **features),
        inputs(1, T, T, 2, 1, 8),
        own=None if features else masked_torch(edges),
    )


@pytest.mark.parametrize("impl", sorted(IMPLS))
@pytest.mark.parametrize("packing", sorted(PACKED))
def test_packed_documents_are_each_document_alone(impl, packing):
    """To the last rounding in float64, forward and every gradient; the layout stands for its cu_seqlens."""
    leaves = [x.requires_grad_() for x in inputs(2, 6, 6, 2, 2, 4, torch.float64)]
    upstream = torch.randn(2, 6, 2, 4, dtype=torch.float64)
    out = attention(*leaves, layout(PACKED[packing], 2, 6), impl=impl)
    packed = [x.flatten(0, 1) for x in (out, *torch.autograd.grad(out, leaves, upstream))]
    edges = sorted({*PACKED[packing].tolist(), 6})
    for start, stop in zip(edges, edges[1:], strict=False):
        span = [x.detach().flatten(0, 1)[None, start:stop].requires_grad_() for x in leaves]
        out = attention(*span, impl=impl)
        alone = [out, *torch.autograd.grad(out, span, upstream.flatten(0, 1)[None, start:stop])]
        for mine, other in zip(packed, alone, strict=True):
            if impl == "reference":
                assert_bitwise(f"document {start}..{stop}", mine[start:stop], other[0])
            torch.testing.assert_close(mine[start:stop], other[0], rtol=1e-13, atol=1e-15)


def test_a_window_of_every_key_is_none_and_a_far_cap_bends_nothing():
    leaves = inputs(1, 9, 9, 2, 2, 8, torch.float64)
    plain = attention(*leaves, impl="eager")
    torch.testing.assert_close(attention(*leaves, window=9, impl="eager"), plain, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(attention(*leaves, softcap=1e6, impl="eager"), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attention(*leaves, window=1, impl="eager"), leaves[2], rtol=0, atol=0)


@pytest.mark.parametrize("impl", sorted(IMPLS))
def test_later_keys_do_not_matter(impl):
    q, k, v = inputs(1, 8, 8, 2, 2, 4)
    before = attention(q, k, v, impl=impl)[:, :5].clone()
    k[:, 5:], v[:, 5:] = 1e3, -1e3
    assert_bitwise("out", attention(q, k, v, impl=impl)[:, :5], before)


@pytest.mark.parametrize("impl", sorted(IMPLS))
@pytest.mark.parametrize("T", [1, 3, 8])
def test_queries_are_the_end_of_the_keys(impl, T):
    q, k, v = inputs(2, 9, 9, 4, 2, 8, torch.float64)
    whole = attention(q, k, v, impl=impl)
    torch.testing.assert_close(attention(q[:, -T:], k, v, impl=impl), whole[:, -T:], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("impl", sorted(IMPLS))
def test_grouped_heads_share_their_key_head(impl):
    q, k, v = inputs(2, 9, 9, 6, 2, 8, torch.float64)
    repeated = attention(q, k.repeat_interleave(3, 2), v.repeat_interleave(3, 2), impl=impl)
    torch.testing.assert_close(attention(q, k, v, impl=impl), repeated, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("impl", sorted(IMPLS))
def test_parts_of_one_projection_are_what_they_are_alone(impl):
    edges = torch.tensor([0, 5, 5, 20], dtype=torch.int32)
    qkv = torch.randn(2, 10, 8, 16, requires_grad=True)
    apart = attention(*qkv.split([4, 2, 2], dim=2), edges, impl=impl, window=7)
    joined = self_attention(qkv, 4, edges, impl=impl, window=7)
    assert torch.equal(joined, apart)
    assert torch.equal(*(torch.autograd.grad(x.square().sum(), qkv)[0] for x in (joined, apart)))


@pytest.mark.parametrize("heads", [0, 3, 8])
def test_heads_that_do_not_fit_a_projection_are_refused(heads):
    with pytest.raises(ValueError, match=r"attention: want qkv \[B, T, H \+ 2 G, K\] with heads = H, got"):
        self_attention(torch.randn(1, 4, 8, 16), heads)


def test_large_scores_stay_finite():
    q, k, v = (x.requires_grad_() for x in inputs(1, 9, 9, 2, 2, 8))
    out = attention(q, k, v, scale=1e4)
    out.sum().backward()
    assert all(x.isfinite().all() for x in (out, q.grad, k.grad, v.grad))


@pytest.mark.parametrize("packing", [None, "uneven"])
def test_strides_do_not_matter(packing):
    dense = inputs(2, 6, 6, 4, 2, 8)
    strided = [x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0) for x in dense]
    for mine, other in zip(*(_results(x, PACKED.get(packing)) for x in (strided, dense)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", [None, "uneven"])
def test_runs_repeat_bitwise(packing):
    leaves = inputs(2, 6, 6, 4, 2, 8)
    for n, (mine, other) in enumerate(zip(*(_results(leaves, PACKED.get(packing)) for _ in range(2)), strict=True)):
        assert_bitwise(f"result {n}", mine, other)


def _results(leaves, cu_seqlens):
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = attention(*leaves, cu_seqlens)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


Q, KV = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 2, 8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention(Q[0], KV, KV), r"want q \[B, T, H, K\]"),
        (lambda: attention(Q, KV, KV[:, :2]), r"want q .*v \[2, 2, 2, 8\]"),
        (lambda: attention(Q, KV[:, :2], KV[:, :2]), "want 1 <= T <= S"),
        (lambda: attention(Q[:, :, :3], KV, KV), "H a multiple of Hkv"),
        (lambda: attention(Q, KV, KV.double()), "one dtype and device"),
        (lambda: attention(Q.int(), KV.int(), KV.int()), "floating q"),
        (lambda: attention(Q[:, 1:], KV, KV, documents(0, 6)), "want S == T with cu_seqlens"),
        (
            lambda: attention(Q, KV, KV, documents(0, 6).long()),
            r"want cu_seqlens int32 \[N \+ 1\].*got torch.int64",
        ),
        (
            lambda: attention(Q, KV, KV, documents(0, 4, 2, 6)),
            r"rising from 0 to B \* T = 6.*got \[0, 4, 2, 6\]",
        ),
        (lambda: attention(Q, KV, KV, documents(0, 3)), "rising from 0"),
        (lambda: attention(Q, KV, KV, documents(1, 6)), "rising from 0"),
        (lambda: attention(Q, KV, KV, impl="sdpa"), r"want impl in \['auto', 'triton', .*, got 'sdpa'"),
        (lambda: attention(Q, KV, KV, window=0), "want window None or >= 1, got 0"),
        (lambda: attention(Q, KV, KV, softcap=0.0), "want softcap None or > 0, got 0.0"),
        (lambda: attention(Q, KV, KV, layout(None, 2, 4)), r"want a layout of B 2, T 3, S 3 on cpu, got one of \(2, 4"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^attention: .*{words}"):
        call()


def test_a_layout_waits_for_nothing():
    """On tensors without values whatever asked for one would fail."""
    at = layout(torch.empty(513, dtype=torch.int32, device="meta"), 16, 2048)
    assert at.edges_q.shape == (512 + 16 + 1,) and at.tiles_k is at.tiles_q
    assert [len(x) for x in at.tiles_q] == [(16 * 2048 + 528 * 63) // 64, (16 * 2048 + 528 * 127) // 128]
