"""Attention's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from numerics import assert_bitwise, check, run

from hotplate.kernels.attention import attention, choice, launches, layout, registered, self_attention, tiles

QUERIES, KEYS, STEP = 32, 16, 16  # what a program owns and walks by, small enough for many tiles in few positions


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, poisoned_memory):
    monkeypatch.setattr(tiles, "BLOCKS", (KEYS, QUERIES))
    monkeypatch.setattr(launches, "configuration", small_configuration)


def small_configuration(name, like, described):
    return launches.Configuration(own=KEYS if name == "keys" else QUERIES, step=STEP, warps=4, stages=1)


def inputs(B, T, S, H, Hkv, K, dtype=torch.float32):
    return [torch.randn(B, T if n == 0 else S, H if n == 0 else Hkv, K).to(dtype) for n in range(3)]


def form(impl, *places, **options):
    return lambda *leaves: attention(*leaves, *places, impl=impl, **options)


def packing(*edges):
    return torch.tensor(edges, dtype=torch.int32)


CASES = {  # B, T, S, H, Hkv, K, edges, options
    "one row": (1, 40, 40, 2, 2, 16, None, {}),
    "one past a tile": (1, 33, 33, 1, 1, 16, None, {}),
    "one position": (1, 1, 1, 2, 1, 16, None, {}),
    "grouped heads, empty documents, rows": (2, 33, 33, 2, 1, 16, (0, 1, 1, 18, 33, 40, 66, 66), {}),
    "four heads of a key head, two key heads": (1, 9, 9, 8, 2, 16, None, {}),
    "one document for all rows": (2, 9, 9, 2, 2, 16, (0, 18), {}),
    "tiny documents": (1, 21, 21, 1, 1, 16, (0, 1, 3, 6, 10, 15, 21), {}),
    "one long among short": (1, 70, 70, 1, 1, 16, (0, 3, 68, 69, 70), {}),
    "window within a tile": (1, 40, 40, 2, 1, 16, (0, 37, 40), {"window": 5}),
    "window of one": (1, 20, 20, 1, 1, 16, None, {"window": 1}),
    "window past tiles": (1, 70, 70, 1, 1, 16, None, {"window": 40}),
    "soft cap": (1, 36, 36, 2, 1, 16, (0, 33, 36), {"softcap": 2.0}),
    "window and soft cap": (1, 40, 40, 1, 1, 16, (0, 37, 40), {"softcap": 3.0, "window": 9}),
    "width that is no power of two": (1, 20, 20, 2, 1, 24, (0, 7, 20), {}),
    "narrow width": (1, 20, 20, 2, 2, 3, (0, 7, 20), {}),
    "cache": (2, 7, 35, 2, 1, 16, None, {}),
    "cache, one query": (1, 1, 40, 2, 1, 16, None, {}),
    "cache, window": (1, 20, 50, 2, 1, 16, None, {"window": 9}),
    "scores of 150": (1, 33, 33, 1, 1, 16, None, {"scale": 4.0}),
}


class Published(torch.autograd.Function):
    """The backward of FlashAttention (Dao 2023, algorithm 2) in plain torch, each of [1, T, 1, K] seeing itself alone.

    There dp - delta, which is 0 in truth and in torch's softmax, is a difference of two roundings of one number.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return v.clone(), (q * k).sum(-1).transpose(1, 2) / q.shape[-1] ** 0.5

    @staticmethod
    def backward(ctx, do, dlse):
        q, k, v = ctx.saved_tensors
        dp = (do.flatten(0, 2) @ v.flatten(0, 2).T).diagonal().view(1, -1, 1, 1)
        ds = (dp - ((do * v).sum(-1, keepdim=True) - dlse.transpose(1, 2)[..., None])) / q.shape[-1] ** 0.5
        return ds * k, ds * q, do


OWN = {"window of one": Published.apply}  # what torch's own error is taken from, where not from the reference


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_budget(name):
    *shape, edges, options = CASES[name]
    leaves = inputs(*shape)
    if options.get("scale"):  # all scores near 150: exp overflows, and yet no weight is 0 or 1
        leaves[0][..., 0], leaves[1][..., 0] = 6.0, 6.0
        leaves[0][..., 1:] *= 0.05
    places = None if edges is None else packing(*edges)
    both = {"return_lse": True, **options}
    check(form("triton", places, **both), form("reference", places, **both), leaves, OWN.get(name))


@pytest.mark.parametrize("shape", [(1, 33, 33, 2, 1, 16), (2, 7, 20, 1, 1, 24)], ids=str)
def test_error_is_within_budget_in_fp16(shape):
    """Width 16 goes through tensor descriptors, 24 through pointers."""
    leaves = inputs(*shape, torch.float16)
    assert launches.describable(leaves[1].flatten(0, 1)) == (shape[-1] == 16)
    check(form("triton", return_lse=True), form("reference", return_lse=True), leaves)


def test_packed_documents_are_each_document_alone_and_runs_repeat():
    edges = [0, 1, 5, 5, 38]
    leaves = inputs(1, 38, 38, 2, 1, 16)
    upstream = [torch.randn(1, 38, 2, 16)]
    packed = run(form("triton", packing(*edges)), leaves, upstream)
    for mine, other in zip(run(form("triton", packing(*edges)), leaves, upstream), packed, strict=True):
        assert_bitwise("again", mine, other)
    for start, stop in zip(edges, edges[1:], strict=False):
        if stop > start:
            span = slice(start, stop)
            alone = run(form("triton"), [x[:, span] for x in leaves], [upstream[0][:, span]])
            for mine, other in zip(packed, alone, strict=True):
                assert_bitwise(f"document {start}", mine[:, span], other)


SHIPPED_WIDTHS = (32, 64, 128, 256)
DESCRIBED, POINTERS = [(K, torch.float16) for K in SHIPPED_WIDTHS], [(24, torch.float16), (128, torch.float32)]
POISONED = [  # heads of a group, width and dtype, features
    *((2, width, features) for width in DESCRIBED + POINTERS for features in ({}, {"softcap": 2.0})),
    *((2, width, {"window": 9}) for width in (DESCRIBED[0], POINTERS[0])),
    *((group, DESCRIBED[0], features) for group in (1, 4) for features in ({}, {"softcap": 2.0})),
]


@pytest.mark.parametrize(("group", "width", "features"), POISONED, ids=str)
def test_other_documents_may_hold_anything(group, width, features):
    """A document between two poisoned ones keeps its bits: out, lse and every gradient. fp16 of a power of two goes
    through descriptors, all else through pointers."""
    K, dtype = width
    places, good = packing(0, 2, 20, 22), slice(2, 20)  # the last tile of the good document holds poisoned rows
    leaves, upstream = inputs(1, 22, 22, group, 1, K, dtype), [torch.randn(1, 22, group, K), torch.randn(1, group, 22)]
    assert launches.describable(leaves[1].flatten(0, 1)) == (dtype == torch.float16 and K in SHIPPED_WIDTHS)
    whole = form("triton", places, return_lse=True, **features)
    clean = run(whole, leaves, upstream)
    for x in (*leaves, upstream[0]):
        x[:, ::21], x[:, 1:21:19] = torch.nan, torch.inf
    upstream[1][:, :, ::21], upstream[1][:, :, 1:21:19] = torch.nan, torch.inf
    for n, (mine, other) in enumerate(zip(run(whole, leaves, upstream), clean, strict=True)):
        where = (slice(None), slice(None), good) if n == 1 else (slice(None), good)
        assert other[where].isfinite().all()
        assert_bitwise(f"result {n}", mine[where], other[where])


def test_strides_do_not_matter():
    """Heads of one projection (descriptors), heads before positions (pointers), and features that do not adjoin."""
    q, k, v = torch.randn(2, 9, 4, 16).half().split([2, 1, 1], dim=2)
    others = [
        (q, k, v),
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)],
    ]
    upstream = torch.randn(2, 2, 9, 16).half().transpose(1, 2)
    dense = run(form("triton"), [x.contiguous() for x in (q, k, v)], [upstream.contiguous()])
    for leaves in others:
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = attention(*leaves, impl="triton")
        for mine, other in zip([out, *torch.autograd.grad(out, leaves, upstream)], dense, strict=True):
            assert_bitwise("strided", mine, other)


def test_addresses_pass_31_bits():
    """Positions 2^26 elements apart: the last document lies beyond element 2^31. Untouched pages cost no memory."""
    T, stride = 36, 1 << 26
    torch.utils.deterministic.fill_uninitialized_memory = False
    far = torch.empty(stride * (T - 1) + 16, dtype=torch.float16).as_strided((1, T, 1, 16), (0, stride, 16, 1))
    near = torch.randn(1, T, 1, 16).half()
    far.copy_(near)
    edges = packing(0, 33, T)
    leaves = [far.detach().requires_grad_(), near.detach().requires_grad_()]
    found, want = ([x, *torch.autograd.grad(x.sum(), y)] for y in leaves for x in [_self_attention(y, edges)])
    for mine, other in zip(found, want, strict=True):
        assert_bitwise("far", mine, other)


def _self_attention(x, edges):
    return attention(x, x, x, edges, impl="triton")


@pytest.mark.parametrize(("H", "G", "options"), [(4, 2, {}), (2, 2, {"window": 9, "softcap": 3.0})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_of_one_projection_give_what_they_give_alone(H, G, options, dtype):
    edges = packing(0, 5, 5, 33, 40)
    qkv = torch.randn(2, 20, H + 2 * G, 16).to(dtype).requires_grad_()
    leaves = [x.detach().requires_grad_() for x in qkv.split([H, G, G], dim=2)]
    upstream = torch.randn(2, 20, H, 16).to(dtype)
    joined = self_attention(qkv, H, edges, impl="triton", **options)
    apart = attention(*leaves, edges, impl="triton", **options)
    assert_bitwise("out", joined, apart)
    (found,) = torch.autograd.grad(joined, qkv, upstream)
    assert_bitwise("gradient", found, torch.cat(torch.autograd.grad(apart, leaves, upstream), dim=2))


@pytest.mark.parametrize(("H", "G", "options"), [(4, 2, {}), (2, 2, {"window": 9, "softcap": 3.0})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("K", [16, 24])
def test_the_gradient_of_a_projections_bias_is_the_sum_over_positions(H, G, options, dtype, K):
    edges = packing(0, 5, 5, 33, 40)
    drawn = [torch.randn(2, 20, H + 2 * G, K).to(dtype), torch.randn(H + 2 * G, K).to(dtype)]

    def form(impl):
        return lambda qkv, bias: self_attention(qkv, H, edges, bias=bias, impl=impl, **options)

    check(form("triton"), form("reference"), drawn)
    upstream = [torch.randn(2, 20, H, K).to(dtype)]
    for mine, other in zip(*(run(form("triton"), drawn, upstream) for _ in range(2)), strict=True):
        assert_bitwise("again", mine, other)


def test_blocks_that_a_layout_has_no_list_of_are_listed_by_the_pass(monkeypatch):
    edges = packing(0, 5, 5, 33, 40)
    leaves = [x.requires_grad_() for x in inputs(2, 20, 20, 2, 1, 16)]

    def found():
        out = attention(*leaves, edges, impl="triton")
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    want = found()
    monkeypatch.setattr(tiles, "BLOCKS", (64,))
    for mine, other in zip(found(), want, strict=True):
        assert_bitwise("without a list", mine, other)


@pytest.mark.parametrize("block", [32, *tiles.BLOCKS])
@pytest.mark.parametrize("short", [0, 5, 300])
def test_lists_hold_every_tile_once_with_the_deepest_first(block, short):
    """Documents without a position, of one tile, of many; one program and several, documents at once and in turns."""
    generator = torch.Generator().manual_seed(short)
    some = torch.randint(0, 9, (short,), generator=generator).tolist()
    lengths = [0, *some, 1000, 0, 64, 65, 128, 129, *some[::-1]]
    edges = torch.tensor([0, *lengths]).cumsum(0)
    edges = torch.cat([edges, edges[-1:].expand(5)]).int()
    (found,) = tiles.tile_lists(edges, int(edges[-1]), [block])
    every = [(n, depth) for n, length in enumerate(lengths) for depth in range(-(-length // block))]
    want = sorted(every, key=lambda tile: -tile[1])
    left = len(found) - len(want)
    assert left >= 0 and found.tolist() == [list(tile) for tile in want] + [[-1, -1]] * left


def test_the_operator_of_one_projection_keeps_its_promises_to_torch():
    qkv = torch.randn(6, 4, 16, requires_grad=True)
    at = layout(packing(0, 2, 6), 1, 6)
    bias = torch.randn(4, 16, requires_grad=True)
    arguments = (qkv, bias, at.edges_q, at.edges_k, list(at.tiles_q), list(at.tiles_k), 0.25, None, None, 2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(registered.joined, arguments, test_utils=checks)


def test_a_gradient_may_come_through_lse_alone():
    leaves = [x.requires_grad_() for x in inputs(1, 20, 20, 2, 1, 16)]
    found, want = (
        torch.autograd.grad(attention(*leaves, return_lse=True, impl=impl)[1].square().sum(), leaves[:2])
        for impl in ("triton", "reference")
    )
    for mine, other in zip(found, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_the_operator_keeps_its_promises_to_torch():
    q, k, v = (x.flatten(0, 1).requires_grad_() for x in inputs(1, 6, 6, 2, 1, 16))
    at = layout(packing(0, 2, 6), 1, 6)
    arguments = (q, k, v, at.edges_q, at.edges_k, list(at.tiles_q), list(at.tiles_k), 0.25, None, None)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(registered.forward, arguments, test_utils=checks)


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_a_compiled_function_holds_it_whole(impl, monkeypatch):
    """One graph, no break, with a layout that is made outside: as a model's layers use it."""
    monkeypatch.setitem(choice.AUTO, "cpu", "triton")
    at = layout(packing(0, 2, 6), 1, 6)
    leaves = [x.requires_grad_() for x in inputs(1, 6, 6, 2, 1, 16)]

    def function(q, k, v):
        out, lse = attention(2 * q, k, v, at, return_lse=True, impl=impl)
        return out.sum() + lse.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, want = (torch.autograd.grad(form_(*leaves), leaves) for form_ in (compiled, function))
    for mine, other in zip(found, want, strict=True):
        assert_bitwise("compiled", mine, other)


def test_logsumexp_is_natural():
    q = torch.zeros(1, 5, 1, 16)
    _, lse = attention(q, q, q, return_lse=True, impl="triton")
    torch.testing.assert_close(lse[0, 0], torch.tensor([math.log(n) for n in range(1, 6)]))
