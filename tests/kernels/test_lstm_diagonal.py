import pytest
import torch
from numerics import assert_bitwise, assert_long_memory, assert_resets_stop_a_nan, check, run

from hotplate.kernels import native
from hotplate.kernels.lstm_diagonal import lstm_diagonal

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Forms that run on a CPU without Triton, with the dtypes that each takes.
FORMS = {
    "eager": [torch.float32, torch.bfloat16, torch.float16],
    "native": [torch.float32, torch.bfloat16],
}
FORM_DTYPES = [(impl, dtype) for impl, dtypes in FORMS.items() for dtype in dtypes]


def operands(B, T, D, dtype=torch.float32):
    """gates, recurrent, h0, c0."""
    return [torch.randn(B, T, 4, D).to(dtype), torch.randn(4, D), torch.randn(B, D), torch.randn(B, D)]


def upstream_of(B, T, D, dtype=torch.float32):
    return [torch.randn(B, T, D).to(dtype), torch.randn(B, D), torch.randn(B, D)]


def test_the_machine_that_tests_builds_native_code():
    assert native.why_not("lstm_diagonal") is None


def test_without_recurrence_it_is_a_gated_sum():
    gates = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    h, h_last, c_last = lstm_diagonal(gates, torch.zeros(4, 3, dtype=torch.float64), impl="reference")
    c = torch.zeros(2, 3, dtype=torch.float64)
    for i, f, z, _ in (gates[:, t].unbind(1) for t in range(5)):
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
    torch.testing.assert_close(c_last, c)
    torch.testing.assert_close(h_last, gates[:, -1, 3].sigmoid() * c.tanh())
    torch.testing.assert_close(h[:, -1], h_last)


@pytest.mark.parametrize("resetting", [False, True])
@pytest.mark.parametrize("impl", ["eager", "reference"])
def test_gradients_agree_with_differences(impl, resetting):
    B, T, D = 2, 4, 3
    leaves = [x.double().requires_grad_() for x in operands(B, T, D)]
    resets = torch.tensor([[True, False, True, True], [False, False, False, True]]) if resetting else None
    assert torch.autograd.gradcheck(lambda *x: lstm_diagonal(*x, resets, forget_offset=0.7, impl=impl), leaves)


SHAPES = [(1, 1, 1), (1, 7, 5), (1, 7, 15), (3, 1, 33), (2, 65, 40), (5, 33, 17), (2, 17, 64), (3, 16, 129)]


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_budget(shape, impl, dtype):
    B, T, D = shape
    resets = torch.rand(B, T) < 0.1

    def op(impl):
        return lambda *x: lstm_diagonal(*x, resets, forget_offset=1.0, impl=impl)

    check(op(impl), op("reference"), lambda: operands(B, T, D, dtype))


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("place", range(5))
def test_a_reset_at_every_place_and_starts_left_out(place, impl):
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[1, place] = True

    def op(impl):
        return lambda *x: lstm_diagonal(*x, None, None, resets, impl=impl)

    check(op(impl), op("reference"), lambda: operands(2, 5, 20)[:2])


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("shape", [(2, 20, 32), (3, 20, 160)], ids=str)
def test_error_is_within_budget_for_tiny_and_saturated_gates(shape, scale, impl):

    def draw():
        gates, recurrent, *_ = operands(*shape)
        return scale * gates, recurrent

    check(lambda *x: lstm_diagonal(*x, impl=impl), lambda *x: lstm_diagonal(*x, impl="reference"), draw)


def test_long_memory_keeps_its_gradient():
    inputs = [torch.randn(1, 2048, 4, 8).bfloat16(), 0.5 * torch.randn(4, 8)]
    assert_long_memory(lambda impl, *x: lstm_diagonal(*x, forget_offset=6.0, impl=impl), inputs, list(FORMS))


@pytest.mark.parametrize("impl", FORMS)
def test_strides_and_dtype_of_the_weights_do_not_matter(impl):
    B, T, D = 2, 9, 6
    gates, recurrent, h0, c0 = operands(B, T, D)
    recurrent = recurrent.bfloat16().float()
    upstream = upstream_of(B, T, D)
    resets = (torch.rand(T, B) < 0.3).T
    dense = run(lambda *x: lstm_diagonal(*x, resets, impl=impl), [gates, recurrent, h0, c0], upstream)
    strided = [
        torch.empty(D, 4, 2 * T, B)[:, :, ::2].permute(3, 2, 1, 0).copy_(gates),
        recurrent.bfloat16().T.contiguous().T,
        h0.T.contiguous().T,
        c0.T.contiguous().T,
    ]
    leaves = [x.detach().requires_grad_() for x in strided]
    outputs = lstm_diagonal(*leaves, resets, impl=impl)
    gradients = torch.autograd.grad(outputs, leaves, [g.mT.contiguous().mT for g in upstream])
    assert gradients[1].dtype == torch.bfloat16
    for n, (mine, other) in enumerate(zip([*outputs, *gradients], dense, strict=True)):
        tolerance = 1e-2 if n == 4 else 1e-6
        torch.testing.assert_close(mine.float(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
def test_runs_repeat_bitwise(impl, dtype):
    inputs, upstream = operands(4, 70, 96, dtype), upstream_of(4, 70, 96, dtype)
    runs = [run(lambda *x: lstm_diagonal(*x, impl=impl), inputs, upstream) for _ in range(2)]
    for n, (mine, other) in enumerate(zip(*runs, strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", ["eager", "native", "reference"])
def test_packed_documents_are_each_document_alone(impl):
    lengths, D = [1, 37, 1, 20, 5], 64
    T = sum(lengths)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    gates, recurrent, h0, c0 = operands(1, T, D)
    upstream = torch.randn(1, T, D)
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[0, starts] = True
    packed_leaf = gates.clone().requires_grad_()
    h, _, _ = lstm_diagonal(packed_leaf, recurrent, h0, c0, resets, impl=impl)
    h.backward(upstream)
    for start, length in zip(starts, lengths, strict=True):
        span = slice(start, start + length)
        leaf = gates[:, span].clone().requires_grad_()
        alone, _, _ = lstm_diagonal(leaf, recurrent, impl=impl)
        alone.backward(upstream[:, span])
        assert_bitwise("h", h[:, span], alone)
        assert_bitwise("dgates", packed_leaf.grad[:, span], leaf.grad)


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
@pytest.mark.parametrize("T1", [1, 16, 29])
def test_a_carried_state_continues_the_run(T1, impl, dtype):
    gates, recurrent, *_ = operands(2, 30, 64, dtype)
    h, h_last, c_last = lstm_diagonal(gates, recurrent, impl=impl)
    h1, *state = lstm_diagonal(gates[:, :T1], recurrent, impl=impl)
    h2, h_end, c_end = lstm_diagonal(gates[:, T1:], recurrent, *state, impl=impl)
    assert_bitwise("h", torch.cat([h1, h2], 1), h)
    assert_bitwise("h_last", h_end, h_last)
    assert_bitwise("c_last", c_end, c_last)


def test_native_results_do_not_depend_on_the_strip_or_the_thread():
    inputs, upstream = operands(3, 20, 130), upstream_of(3, 20, 130)

    def results(columns, threads):
        torch.set_num_threads(threads)
        try:
            return run(
                lambda *x: lstm_diagonal(*x, impl="native"),
                [x[..., columns] for x in inputs],
                [g[..., columns] for g in upstream],
            )
        finally:
            torch.set_num_threads(1)

    whole = results(slice(0, 130), 1)
    for columns in (slice(0, 130), slice(3, 67), slice(5, 6), slice(60, 130)):
        for n, (mine, other) in enumerate(zip(results(columns, 2), whole, strict=True)):
            assert_bitwise(f"columns {columns}, result {n}", mine, other[..., columns])


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("block", range(4))
def test_a_nan_shows_and_stays_in_its_column(block, impl):
    gates, recurrent, *_ = operands(1, 9, 3)
    gates[0, 3, block, 1] = torch.nan
    h, _, _ = lstm_diagonal(gates, recurrent, impl=impl)
    assert h[0, 3:, 1].isnan().all() and h[..., [0, 2]].isfinite().all() and h[0, :3].isfinite().all()


@pytest.mark.parametrize("impl", [*FORMS, "reference"])
def test_a_nan_does_not_outlive_a_reset(impl):
    gates, recurrent, *starts = operands(2, 9, 5)
    assert_resets_stop_a_nan(lambda gates, *rest: lstm_diagonal(gates, recurrent, *rest, impl=impl), gates, starts)


@pytest.mark.parametrize(
    ("impl", "dtype", "resetting"),
    [
        *(("eager", torch.float32, True), ("eager", torch.bfloat16, False), ("eager", torch.float16, True)),
        *(("eager", torch.float64, False), ("native", torch.float32, False), ("native", torch.bfloat16, True)),
    ],
    ids=str,
)
def test_the_operators_keep_their_promises_to_torch(impl, dtype, resetting):
    B, T, D = 2, 5, 3
    wide = torch.promote_types(dtype, torch.float32)
    gates, recurrent, h0, c0 = operands(B, T, D)
    leaves = [gates.to(dtype), *(x.to(wide) for x in (recurrent, h0, c0))]
    resets = torch.rand(B, T) < 0.5 if resetting else None
    one_head = [leaves[0][:, :, :, None], leaves[1], leaves[2][:, None], leaves[3][:, None]]
    operator = torch.ops.hotplate.lstm_diagonal
    first, *others = (x.clone().requires_grad_() for x in one_head)
    torch.library.opcheck(operator.default, (first, None, *others, resets, 0.5, impl, True))
    h, _, _, saved, second = operator(one_head[0], None, *one_head[1:], resets, 0.5, impl, True)
    dh, dh_last, dc_last = (g[:, :, None] if g.ndim == 3 else g[:, None] for g in upstream_of(B, T, D))
    upstream = dh.to(dtype), dh_last.to(wide), dc_last.to(wide)
    arguments = (*upstream, h, saved, second, one_head[0], None, *one_head[1:], resets, 0.5, impl)
    torch.library.opcheck(torch.ops.hotplate.lstm_diagonal_backward.default, arguments)


@pytest.mark.parametrize("impl", ["auto", "eager", "native"])
def test_torch_compile_sees_one_graph(impl):
    inputs, upstream = operands(2, 6, 8), upstream_of(2, 6, 8)

    def op(gates, *others):
        h, h_last, c_last = lstm_diagonal(2 * gates, *others, impl=impl)
        return h + 1, h_last, c_last

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for n, (mine, other) in enumerate(zip(run(compiled, inputs, upstream), run(op, inputs, upstream), strict=True)):
        assert_bitwise(f"result {n}", mine, other)


G, R = torch.zeros(2, 3, 4, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lstm_diagonal(G[:, :, :3], R), r"want gates \[B, T >= 1, 4, D\].*got \[2, 3, 3, 5\]"),
        (lambda: lstm_diagonal(G[:, :0], R), "T >= 1"),
        (lambda: lstm_diagonal(G.int(), R), "floating gates"),
        (lambda: lstm_diagonal(G, R.int()), "floating recurrent"),
        (lambda: lstm_diagonal(G, R[:3]), r"want recurrent \[4, 5\] on cpu, got \[3, 5\]"),
        (lambda: lstm_diagonal(G, R, torch.zeros(2, 4)), r"want h0 None or \[2, 5\] torch.float32.*got \[2, 4\]"),
        (lambda: lstm_diagonal(G.double(), R, None, torch.zeros(2, 5)), "want c0 None or .* torch.float64"),
        (lambda: lstm_diagonal(G, R, None, None, torch.zeros(3, 2).bool()), r"got \[3, 2\]"),
        (lambda: lstm_diagonal(G, R, impl="fast"), r"want impl in \['auto', 'eager', .*got 'fast'"),
        (lambda: lstm_diagonal(G.half(), R, impl="native"), "want a CPU tensor of float32 or bfloat16"),
        (lambda: lstm_diagonal(G, R, impl="triton"), "want a CUDA tensor"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^lstm_diagonal: .*{words}"):
        call()
