import pytest
import torch
from numerics import assert_bitwise, assert_long_memory, assert_resets_stop_a_nan, check, run
from processors import OLDER, built_for, needs_older

from hotplate.kernels.lstm import lstm
from hotplate.kernels.recurrence import native as recurrence

pytestmark = pytest.mark.usefixtures("poisoned_memory")
IMPLS = ("eager", "native", "reference")
WIDE = ("eager", "reference")  # those that take float64


def resets_at(B, T, *places):
    resets = torch.zeros(B, T, dtype=torch.bool)
    for row, step in places:
        resets[row, step] = True
    return resets


def inputs(B, T, H, K, heads, dtype=torch.float32):
    """gates, recurrent, h0, c0; `heads` is H, or 1 for a shared matrix."""
    state = torch.promote_types(dtype, torch.float32)
    return [
        torch.randn(B, T, 4, H, K).to(dtype),
        (torch.randn(4, heads, K, K) / K**0.5).to(dtype),
        torch.randn(B, H, K).to(dtype).to(state),
        torch.randn(B, H, K, dtype=state),
    ]


PATTERNS = {
    "none": None,
    "first": resets_at(2, 4, (0, 0)),
    "last": resets_at(2, 4, (1, 3)),
    "consecutive": resets_at(2, 4, (0, 1), (0, 2), (1, 0)),
}


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("impl", WIDE)
def test_gradients_agree_with_differences(impl, pattern):
    """Matrices of one head and of two in turn: every two of a form, heads and a pattern meet."""
    heads = 1 + (WIDE.index(impl) + sorted(PATTERNS).index(pattern)) % 2
    leaves = [x.requires_grad_() for x in inputs(2, 4, 2, 3, heads, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *leaves: lstm(*leaves, PATTERNS[pattern], forget_offset=0.7, impl=impl), leaves
    )


SHAPES = [(1, 1, 1, 1), (1, 1, 1, 33), (1, 9, 3, 5), (1, 9, 5, 19), (3, 1, 2, 17), (2, 33, 3, 16), (5, 40, 1, 48)]


RUNS = [("eager", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
RUNS += [("native", dtype) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_error_is_within_budget(shape, shared, impl, dtype):
    B, T, H, K = shape
    resets = torch.rand(B, T) < 0.1

    def op(impl):
        return lambda *leaves: lstm(*leaves, resets, forget_offset=1.0, impl=impl)

    check(op(impl), op("reference"), lambda: inputs(B, T, H, K, 1 if shared else H, dtype))


@pytest.mark.parametrize("B", [2, 4, 6, 7, 8, 9, 12, 13, 25])
def test_every_tile_of_the_native_form_is_within_budget(B):
    """Tiles hold 1 to 12 rows, and columns come in panels: 40 fills two and a half of 16."""
    resets = torch.rand(B, 3) < 0.2
    check(
        lambda *leaves: lstm(*leaves, resets, impl="native"),
        lambda *leaves: lstm(*leaves, resets, impl="reference"),
        lambda: inputs(B, 3, 1, 40, 1),
    )


@needs_older
@pytest.mark.parametrize("processor", OLDER)
def test_error_is_within_budget_on_older_processors(processor):
    """Panels of 8 columns, tiles of at most 6 rows."""
    with built_for(processor, recurrence._library):
        for B in (1, 2, 4, 5, 6, 7, 13):
            test_every_tile_of_the_native_form_is_within_budget(B)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_threads_do_not_change_the_native_form(threads, dtype):
    """Bitwise: a row's sums are made in one order whatever tile holds the row."""
    B, T, H, K = 15, 4, 2, 32
    leaves = inputs(B, T, H, K, H, dtype)
    upstream = [torch.randn(B, T, H, K), torch.randn(B, H, K), torch.randn(B, H, K)]
    whole = run(lambda *x: lstm(*x, impl="native"), leaves, upstream)
    torch.set_num_threads(threads)
    try:
        for rows in (slice(0, 1), slice(1, 7), slice(7, 15)):
            part = [x if n == 1 else x[rows] for n, x in enumerate(leaves)]
            results = run(lambda *x: lstm(*x, impl="native"), part, [g[rows] for g in upstream])
            for n in (0, 1, 2, 3, 5, 6):  # 4 is the gradient of the matrices: a sum over rows
                assert_bitwise(f"result {n}", results[n], whole[n][rows])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_gradient_of_many_terms_is_within_budget_on_any_threads(heads):
    """585 terms: more than one copy of 512, the rest no multiple of a chain of 128; 70 columns: more than one of 64."""
    B, T, H, K = 9, 65, 2, 70
    resets = torch.rand(B, T) < 0.1

    def op(impl):
        return lambda *leaves: lstm(*leaves, resets, impl=impl)

    check(op("native"), op("reference"), lambda: inputs(B, T, H, K, heads))
    leaves, upstream = inputs(B, T, H, K, heads), [torch.randn(B, T, H, K), *torch.randn(2, B, H, K)]
    one = run(op("native"), leaves, upstream)
    torch.set_num_threads(3)
    try:
        for n, (mine, other) in enumerate(zip(run(op("native"), leaves, upstream), one, strict=True)):
            assert_bitwise(f"result {n}", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("impl", ["eager", "native"])
@pytest.mark.parametrize("keep", [False, True])
def test_torch_accepts_the_operator(impl, keep):
    gates, *others = [x.requires_grad_(keep) for x in inputs(2, 3, 2, 8, 2)]
    arguments = (gates, None, *others, resets_at(2, 3, (0, 1)), 0.5, impl, keep)
    torch.library.opcheck(torch.ops.hotplate.lstm.default, arguments)


def test_a_second_derivative_is_refused():
    leaves = [x.requires_grad_() for x in inputs(1, 2, 1, 4, 1)]
    (first,) = torch.autograd.grad(lstm(*leaves)[0].sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="not implement|does not require grad|no.*autograd|derivative"):
        first.sum().backward()


def test_auto_is_native_for_float32_and_eager_for_float64():
    for dtype, impl in ((torch.float32, "native"), (torch.bfloat16, "native"), (torch.float64, "eager")):
        leaves = inputs(2, 5, 2, 16, 2, dtype)
        assert_bitwise("h", lstm(*leaves)[0], lstm(*leaves, impl=impl)[0])


@pytest.mark.parametrize("impl", WIDE)
def test_one_head_is_torch_lstm(impl):
    B, T, K, D = 3, 11, 5, 7
    theirs = torch.nn.LSTM(D, K, batch_first=True).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    h0, c0 = torch.randn(2, B, K, dtype=torch.float64)
    h, (h_last, c_last) = theirs(x, (h0[None], c0[None]))
    upstream = torch.randn_like(h)
    wanted = torch.autograd.grad(h, [x, theirs.weight_hh_l0], upstream)

    bias = theirs.bias_ih_l0 + theirs.bias_hh_l0  # theirs are blocks (i, f, g, o), where g is our z
    gates = torch.nn.functional.linear(x, theirs.weight_ih_l0, bias).view(B, T, 4, 1, K)
    recurrent = theirs.weight_hh_l0.view(4, 1, K, K).mT
    ours, ours_h_last, ours_c_last = lstm(gates, recurrent, h0[:, None], c0[:, None], impl=impl)
    got = torch.autograd.grad(ours, [x, theirs.weight_hh_l0], upstream[:, :, None])
    pairs = [(ours[:, :, 0], h), (ours_h_last[:, 0], h_last[0]), (ours_c_last[:, 0], c_last[0])]
    for mine, other in [*pairs, *zip(got, wanted, strict=True)]:
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", WIDE)
def test_a_shared_matrix_is_the_same_matrix_for_every_head(impl):
    gates, shared, h0, c0 = inputs(2, 6, 3, 4, 1, torch.float64)
    results = [lstm(gates, matrix, h0, c0, impl=impl) for matrix in (shared, shared.expand(4, 3, 4, 4).contiguous())]
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_wide_matrix_is_rounded_to_the_dtype_of_the_gates(impl):
    gates, _, h0, c0 = inputs(2, 6, 2, 8, 2, torch.bfloat16)
    wide = torch.randn(4, 2, 8, 8, requires_grad=True)
    h, _, _ = lstm(gates, wide, h0, c0, impl=impl)
    assert_bitwise("h", h, lstm(gates, wide.bfloat16(), h0, c0, impl=impl)[0])
    h.sum().backward()
    assert wide.grad.dtype == torch.float32


@pytest.mark.parametrize("impl", IMPLS)
def test_extreme_gates_stay_finite(impl):
    gates, recurrent, _, _ = inputs(1, 3, 2, 4, 2)
    gates = (1e4 * gates).requires_grad_()
    h, h_last, c_last = lstm(gates, recurrent, impl=impl)
    (h.sum() + h_last.sum() + c_last.sum()).backward()
    assert h.isfinite().all() and c_last.isfinite().all() and gates.grad.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("heads", [1, 2])
def test_a_nan_does_not_outlive_a_reset(heads, impl):
    gates, recurrent, *starts = inputs(2, 9, 2, 5, heads)
    assert_resets_stop_a_nan(lambda gates, *rest: lstm(gates, recurrent, *rest, impl=impl), gates, starts)


@pytest.mark.parametrize("impl", IMPLS)
def test_strides_do_not_matter(impl):
    B, T, H, K = 2, 9, 3, 8
    gates, recurrent, h0, c0 = inputs(B, T, H, K, H)
    strided = [
        torch.empty(K, H, 4, 2 * T, B)[:, :, :, ::2].permute(4, 3, 2, 1, 0).copy_(gates),
        recurrent.mT.contiguous().mT,
        h0.transpose(0, 2).contiguous().transpose(0, 2),
        c0.mT.contiguous().mT,
    ]
    resets = (torch.rand(T, B) < 0.3).T
    upstream = [torch.randn(K, H, T, B).permute(3, 2, 1, 0), torch.randn(H, B, K).transpose(0, 1)]

    def results(leaves):
        leaves = [x.detach().requires_grad_() for x in leaves]
        h, h_last, c_last = lstm(*leaves, resets, impl=impl)
        return h, *torch.autograd.grad([h, h_last, c_last], leaves, [*upstream, upstream[1]])

    for mine, other in zip(results(strided), results([gates, recurrent, h0, c0]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_repeat_bitwise(dtype, impl):
    leaves = inputs(4, 20, 2, 32, 2, dtype)
    upstream = [torch.randn(4, 20, 2, 32), torch.randn(4, 2, 32), torch.randn(4, 2, 32)]
    runs = [run(lambda *x: lstm(*x, impl=impl), leaves, upstream) for _ in range(2)]
    for n, (mine, other) in enumerate(zip(*runs, strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_documents_are_each_document_alone(impl):
    lengths, H, K = [1, 17, 1, 12, 5], 2, 32
    T = sum(lengths)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    gates, recurrent, h0, c0 = inputs(1, T, H, K, H)
    upstream = torch.randn(1, T, H, K)
    packed_leaf = gates.clone().requires_grad_()
    h, _, _ = lstm(packed_leaf, recurrent, h0, c0, resets_at(1, T, *((0, s) for s in starts)), impl=impl)
    h.backward(upstream)
    for start, length in zip(starts, lengths, strict=True):
        span = slice(start, start + length)
        leaf = gates[:, span].clone().requires_grad_()
        alone, _, _ = lstm(leaf, recurrent, impl=impl)
        alone.backward(upstream[:, span])
        assert_bitwise("h", h[:, span], alone)
        assert_bitwise("dgates", packed_leaf.grad[:, span], leaf.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T1", [1, 11, 19])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_carried_state_continues_the_run(impl, T1, dtype):
    gates, recurrent, h0, c0 = inputs(2, 20, 2, 32, 2, dtype)
    h, h_last, c_last = lstm(gates, recurrent, h0, c0, impl=impl)
    h1, *state = lstm(gates[:, :T1], recurrent, h0, c0, impl=impl)
    h2, h2_last, c2_last = lstm(gates[:, T1:], recurrent, *state, impl=impl)
    assert_bitwise("h", torch.cat([h1, h2], 1), h)
    assert_bitwise("h_last", h2_last, h_last)
    assert_bitwise("c_last", c2_last, c_last)


@pytest.mark.parametrize("impl", IMPLS)
def test_inputs_are_left_alone(impl):
    leaves = [x.requires_grad_() for x in inputs(2, 5, 2, 4, 2)]
    before = [x.detach().clone() for x in leaves]
    outputs = lstm(*leaves, impl=impl)
    upstream = [torch.randn_like(y) for y in outputs]
    kept = [g.clone() for g in upstream]
    first = torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(outputs, leaves, upstream)
    pairs = [
        *zip(leaves, before, strict=True),
        *zip(upstream, kept, strict=True),
        *zip(first, second, strict=True),
    ]
    for n, (mine, other) in enumerate(pairs):
        assert_bitwise(f"pair {n}", mine.detach(), other)


def test_long_memory_keeps_its_gradient():
    """Weights are small: h is rounded before each product by definition, which with larger ones is all that shows."""
    inputs = [torch.randn(1, 2048, 4, 1, 8).bfloat16(), (0.02 * torch.randn(4, 1, 8, 8)).bfloat16()]
    assert_long_memory(lambda impl, *x: lstm(*x, forget_offset=6.0, impl=impl), inputs, ["eager", "native"])


G, R = torch.zeros(2, 3, 4, 2, 5), torch.zeros(4, 2, 5, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lstm(G[:, :, :3], R), r"want gates \[B, T >= 1, 4, H, K\], got \[2, 3, 3, 2, 5\]"),
        (lambda: lstm(G[:, :0], R), "T >= 1"),
        (lambda: lstm(G.int(), R), "floating gates"),
        (lambda: lstm(G, R.int()), "floating recurrent"),
        (
            lambda: lstm(G, R[:, :, :4]),
            r"want recurrent \[4, 2, 5, 5\] or \[4, 1, 5, 5\].*got \[4, 2, 4, 5\]",
        ),
        (lambda: lstm(G, R, torch.zeros(2, 5)), r"want h0 None or \[2, 2, 5\] torch.float32"),
        (lambda: lstm(G, R, None, torch.zeros(2, 2, 5).bfloat16()), "want c0 .*torch.bfloat16"),
        (lambda: lstm(G, R, None, None, torch.zeros(2, 4).bool()), r"want resets None or bool \[2, 3\]"),
        (lambda: lstm(G, R, impl="fast"), r"want impl in \['auto', 'eager', 'native', .*\], got 'fast'"),
        (lambda: lstm(G, R, impl="triton"), "impl='triton'"),
        (lambda: lstm(G.double(), R, impl="native"), "want a CPU tensor of float32.*got torch.float64"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^lstm: .*{words}"):
        call()
