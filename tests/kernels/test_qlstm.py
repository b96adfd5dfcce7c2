import pytest
import torch
from numerics import assert_bitwise, assert_long_memory, assert_resets_stop_a_nan, check, run

from hotplate.kernels import native
from hotplate.kernels.qlstm import eager, qlstm
from hotplate.kernels.qlstm.registered import backward, forward

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Forms that run on a CPU without Triton, with the dtypes that each takes.
FORMS = {
    "eager": [torch.float32, torch.bfloat16, torch.float16],
    "native": [torch.float32, torch.bfloat16],
}
FORM_DTYPES = [(impl, dtype) for impl, dtypes in FORMS.items() for dtype in dtypes]


def test_the_machine_that_tests_builds_native_code():
    assert native.why_not("qlstm") is None


def resets_at(B, T, *places):
    resets = torch.zeros(B, T, dtype=torch.bool)
    for row, step in places:
        resets[row, step] = True
    return resets


def reset_patterns(B, T):
    first, last = resets_at(B, T, (0, 0)), resets_at(B, T, (B - 1, T - 1))
    return {
        "none": None,
        "first": first,
        "last": last,
        "consecutive": resets_at(B, T, (0, 1), (0, 2), (B - 1, 0)),
    }


@pytest.mark.parametrize("pattern", ["none", "first", "last", "consecutive"])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("impl", ["eager", "reference"])
def test_gradients_agree_with_differences(impl, coupled, pattern):
    B, T, D = 2, 4, 3
    gates = torch.randn(B, T, 3 if coupled else 4, D, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    resets = reset_patterns(B, T)[pattern]

    def op(gates, c0):
        return qlstm(gates, c0, resets, forget_offset=0.7, coupled=coupled, impl=impl)

    assert torch.autograd.gradcheck(op, (gates, c0))


SHAPES = [(1, 1, 1), (1, 7, 5), (1, 7, 15), (3, 1, 33), (2, 65, 40), (5, 33, 17), (2, 17, 64), (3, 16, 129)]


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("coupled", [False, True])
def test_error_is_within_budget(shape, impl, dtype, coupled):
    B, T, D = shape
    resets = torch.rand(B, T) < 0.1

    def op(impl):
        return lambda gates, c0: qlstm(gates, c0, resets, forget_offset=1.0, coupled=coupled, impl=impl)

    def draw():
        return torch.randn(B, T, 3 if coupled else 4, D).to(dtype), torch.randn(B, D)

    check(op(impl), op("reference"), draw)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("chunk_steps", [1, 2, 7, 19, 20, 21])
def test_chunks_of_steps_join_without_a_seam(monkeypatch, chunk_steps, coupled):
    B, T, D = 3, 20, 32
    gates, c0, resets = torch.randn(B, T, 3 if coupled else 4, D), torch.randn(B, D), torch.rand(B, T) < 0.1
    upstream = [torch.randn(B, T, D), torch.randn(B, D)]

    def results():
        return run(lambda g, c: qlstm(g, c, resets, coupled=coupled, impl="eager"), [gates, c0], upstream)

    whole = results()
    monkeypatch.setattr(eager, "CPU_CHUNK_BYTES", chunk_steps * B * D * gates.element_size())
    with torch.no_grad():
        inference = qlstm(gates, c0, resets, coupled=coupled, impl="eager")
    for n, (mine, other) in enumerate(zip(results() + list(inference), whole + whole[:2], strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_error_is_within_budget_for_tiny_and_saturated_gates(scale, impl):
    check(
        lambda g: qlstm(g, impl=impl),
        lambda g: qlstm(g, impl="reference"),
        lambda: [scale * torch.randn(2, 20, 4, 32)],
    )


@pytest.mark.parametrize("impl", FORMS)
def test_extreme_gates_stay_finite(impl):
    gates = torch.full((1, 3, 4, 2), 1e4)
    gates[..., 1] *= -1
    gates.requires_grad_()
    h, c = qlstm(gates, impl=impl)
    (h.sum() + c.sum()).backward()
    assert h.isfinite().all() and c.isfinite().all() and gates.grad.isfinite().all()


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("block", range(4))
def test_a_nan_shows_and_stays_in_its_column(block, impl):
    gates = torch.randn(1, 9, 4, 3)
    gates[0, 3, block, 1] = torch.nan
    h, _ = qlstm(gates, None, resets_at(1, 9, (0, 6)), impl=impl)
    assert h[0, 3, 1].isnan() and bool(h[0, 5, 1].isnan()) == (block != 3)  # o alone does not reach the state
    assert h[..., [0, 2]].isfinite().all() and h[0, :3].isfinite().all()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("impl", [*FORMS, "reference"])
def test_a_nan_does_not_outlive_a_reset(impl, coupled):
    assert_resets_stop_a_nan(
        lambda gates, c0, resets: qlstm(gates, c0, resets, coupled=coupled, impl=impl),
        torch.randn(2, 9, 3 if coupled else 4, 5),
        [torch.randn(2, 5)],
    )


def test_long_memory_keeps_its_gradient():
    inputs = [torch.randn(1, 2048, 4, 8).bfloat16()]
    assert_long_memory(lambda impl, gates, *c0: qlstm(gates, *c0, forget_offset=6.0, impl=impl), inputs, list(FORMS))


@pytest.mark.parametrize("impl", FORMS)
def test_strides_do_not_matter(impl):
    B, T, D = 2, 9, 6
    dense = torch.randn(B, T, 4, D)
    strided = torch.empty(D, 4, 2 * T, B)[:, :, ::2].permute(3, 2, 1, 0).copy_(dense)
    upstream = [torch.randn(D, T, B).permute(2, 1, 0), torch.randn(D, B).T]
    resets = (torch.rand(T, B) < 0.3).T
    c0 = torch.randn(D, B).T

    def op(gates):
        return qlstm(gates, c0, resets, impl=impl)

    dense_results = run(op, [dense], [g.contiguous() for g in upstream])
    leaf = strided.detach().requires_grad_()
    outputs = op(leaf)
    strided_results = [*outputs, *torch.autograd.grad(outputs, [leaf], upstream)]
    for mine, other in zip(strided_results, dense_results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
def test_runs_repeat_bitwise(impl, dtype):
    gates, c0 = torch.randn(4, 70, 4, 96).to(dtype), torch.randn(4, 96)
    upstream = [torch.randn(4, 70, 96), torch.randn(4, 96)]
    runs = [run(lambda g, c: qlstm(g, c, impl=impl), [gates, c0], upstream) for _ in range(2)]
    for n, (mine, other) in enumerate(zip(*runs, strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", ["eager", "native", "reference"])
@pytest.mark.parametrize("coupled", [False, True])
def test_packed_documents_are_each_document_alone(impl, coupled):
    lengths, D = [1, 37, 1, 20, 5], 64
    T = sum(lengths)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    gates, upstream = torch.randn(1, T, 3 if coupled else 4, D), torch.randn(1, T, D)
    resets = resets_at(1, T, *((0, start) for start in starts))
    packed_leaf = gates.clone().requires_grad_()
    h, _ = qlstm(packed_leaf, torch.randn(1, D), resets, coupled=coupled, impl=impl)
    h.backward(upstream)
    for start, length in zip(starts, lengths, strict=True):
        span = slice(start, start + length)
        leaf = gates[:, span].clone().requires_grad_()
        alone, _ = qlstm(leaf, coupled=coupled, impl=impl)
        alone.backward(upstream[:, span])
        assert_bitwise("h", h[:, span], alone)
        assert_bitwise("dgates", packed_leaf.grad[:, span], leaf.grad)


@pytest.mark.parametrize(("impl", "dtype"), FORM_DTYPES, ids=str)
@pytest.mark.parametrize("T1", [1, 16, 29])
def test_a_carried_state_continues_the_run(T1, impl, dtype):
    gates = torch.randn(2, 30, 4, 64).to(dtype)
    h, c_last = qlstm(gates, impl=impl)
    with torch.no_grad():
        h1, c1 = qlstm(gates[:, :T1], impl=impl)
        h2, c2 = qlstm(gates[:, T1:], c1, impl=impl)
    assert_bitwise("h", torch.cat([h1, h2], 1), h)
    assert_bitwise("c_last", c2, c_last)


def test_native_results_do_not_depend_on_the_strip_or_the_thread():
    gates, c0, upstream = (
        torch.randn(3, 20, 4, 130),
        torch.randn(3, 130),
        [torch.randn(3, 20, 130), torch.randn(3, 130)],
    )

    def results(columns, threads):
        torch.set_num_threads(threads)
        try:
            picked = [x[..., columns] for x in (gates, c0, *upstream)]
            return run(lambda g, c: qlstm(g, c, impl="native"), picked[:2], picked[2:])
        finally:
            torch.set_num_threads(1)

    whole = results(slice(0, 130), 1)
    for columns in (slice(0, 130), slice(3, 67), slice(5, 6), slice(60, 130)):
        for n, (mine, other) in enumerate(zip(results(columns, 2), whole, strict=True)):
            assert_bitwise(f"columns {columns}, result {n}", mine, other[..., columns])


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
    gates = torch.randn(B, T, 4, D).to(dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    c0, resets = torch.randn(B, D, dtype=wide, requires_grad=True), torch.rand(B, T) < 0.5 if resetting else None
    torch.library.opcheck(forward, (gates, None, c0, resets, 0.5, impl, True))
    saved = forward(gates.detach(), None, c0.detach(), resets, 0.5, impl, True)[2]
    upstream = torch.randn(B, T, D).to(dtype), torch.randn(B, D, dtype=wide)
    torch.library.opcheck(backward, (*upstream, gates.detach(), None, saved, resets, 0.5, impl))


@pytest.mark.parametrize("impl", ["auto", "eager", "native"])
def test_torch_compile_sees_one_graph(impl):
    gates, c0 = torch.randn(2, 6, 4, 8), torch.randn(2, 8)

    def op(gates, c0):
        h, c_last = qlstm(2 * gates, c0, impl=impl)
        return h + 1, c_last

    upstream = [torch.randn(2, 6, 8), torch.randn(2, 8)]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for n, (mine, other) in enumerate(
        zip(run(compiled, [gates, c0], upstream), run(op, [gates, c0], upstream), strict=True)
    ):
        assert_bitwise(f"result {n}", mine, other)


def test_inputs_are_left_alone():
    gates, c0 = torch.randn(2, 5, 4, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    before = gates.detach().clone(), c0.detach().clone()
    h, c_last = qlstm(gates, c0)
    first = torch.autograd.grad([h.sum() + c_last.sum()], [gates, c0], retain_graph=True)
    second = torch.autograd.grad([h.sum() + c_last.sum()], [gates, c0])
    assert_bitwise("gates", gates.detach(), before[0])
    assert_bitwise("c0", c0.detach(), before[1])
    assert_bitwise("second backward", first[0], second[0])


G = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: qlstm(G[:, :, :3]), r"want gates \[B, T >= 1, 4, D\].*got \[2, 3, 3, 5\]"),
        (lambda: qlstm(G, coupled=True), r"want gates \[B, T >= 1, 3, D\]"),
        (lambda: qlstm(G[:, :0]), "T >= 1"),
        (lambda: qlstm(G.int()), "floating gates"),
        (lambda: qlstm(G, torch.zeros(2, 4)), r"want c0 None or \[2, 5\] torch.float32.*got \[2, 4\]"),
        (lambda: qlstm(G, torch.zeros(2, 5).bfloat16()), "torch.bfloat16"),
        (lambda: qlstm(G.double(), torch.zeros(2, 5)), "torch.float64"),
        (lambda: qlstm(G, None, torch.zeros(2, 3)), r"want resets None or bool \[2, 3\]"),
        (lambda: qlstm(G, None, torch.zeros(3, 2).bool()), r"got \[3, 2\]"),
        (
            lambda: qlstm(G, impl="fast"),
            r"want impl in \['auto', 'eager', 'native', 'reference', 'triton'\], got 'fast'",
        ),
        (lambda: qlstm(G.half(), impl="native"), "want a CPU tensor of float32 or bfloat16.*got torch.float16 on cpu"),
        (lambda: qlstm(G, impl="triton"), "got torch.float32 on cpu; use impl='auto', or TRITON_INTERPRET=1"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^qlstm: .*{words}"):
        call()
