import pytest
import torch
from numerics import assert_bitwise, check, relative, run

from hotplate.kernels.qlstm import eager, qlstm
from hotplate.kernels.qlstm.op import IMPLS

pytestmark = pytest.mark.usefixtures("poisoned_memory")


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
@pytest.mark.parametrize("impl", sorted(IMPLS))
def test_gradients_agree_with_differences(impl, coupled, pattern):
    B, T, D = 2, 4, 3
    gates = torch.randn(B, T, 3 if coupled else 4, D, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    resets = reset_patterns(B, T)[pattern]

    def op(gates, c0):
        return qlstm(gates, c0, resets, forget_offset=0.7, coupled=coupled, impl=impl)

    assert torch.autograd.gradcheck(op, (gates, c0))


SHAPES = [(1, 1, 1), (1, 7, 5), (3, 1, 33), (2, 65, 40), (5, 33, 17)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("coupled", [False, True])
def test_error_is_within_budget(shape, dtype, coupled):
    B, T, D = shape
    gates = torch.randn(B, T, 3 if coupled else 4, D).to(dtype)
    resets = torch.rand(B, T) < 0.1

    def op(impl):
        return lambda gates, c0: qlstm(gates, c0, resets, forget_offset=1.0, coupled=coupled, impl=impl)

    check(op("eager"), op("reference"), [gates, torch.randn(B, D)])


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("chunk_steps", [1, 2, 7, 19, 20, 21])
def test_chunks_of_steps_join_without_a_seam(monkeypatch, chunk_steps, coupled):
    B, T, D = 3, 20, 32
    gates, c0, resets = torch.randn(B, T, 3 if coupled else 4, D), torch.randn(B, D), torch.rand(B, T) < 0.1
    upstream = [torch.randn(B, T, D), torch.randn(B, D)]

    def results():
        return run(lambda g, c: qlstm(g, c, resets, coupled=coupled), [gates, c0], upstream)

    whole = results()
    monkeypatch.setattr(eager, "CPU_CHUNK_BYTES", chunk_steps * B * D * gates.element_size())
    with torch.no_grad():
        inference = qlstm(gates, c0, resets, coupled=coupled)
    for n, (mine, other) in enumerate(zip(results() + list(inference), whole + whole[:2], strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_error_is_within_budget_for_tiny_and_saturated_gates(scale):
    gates = scale * torch.randn(2, 20, 4, 32)
    check(lambda g: qlstm(g), lambda g: qlstm(g, impl="reference"), [gates])


def test_extreme_gates_stay_finite():
    gates = torch.full((1, 3, 4, 2), 1e4)
    gates[..., 1] *= -1
    gates.requires_grad_()
    h, c = qlstm(gates)
    (h.sum() + c.sum()).backward()
    assert h.isfinite().all() and c.isfinite().all() and gates.grad.isfinite().all()


def test_long_memory_keeps_its_gradient():
    T = 4096
    gates = torch.randn(1, T, 4, 8).bfloat16()
    upstream = [torch.randn(1, T, 8).bfloat16(), torch.randn(1, 8)]

    def op(impl):
        return lambda gates: qlstm(gates, forget_offset=6.0, impl=impl)

    truth = run(op("reference"), [gates.double()], upstream)
    ours = run(op("eager"), [gates], upstream)
    assert [relative(mine, true) <= 2e-3 for mine, true in zip(ours, truth, strict=True)] == [True] * 3


def test_strides_do_not_matter():
    B, T, D = 2, 9, 6
    dense = torch.randn(B, T, 4, D)
    strided = torch.empty(D, 4, 2 * T, B)[:, :, ::2].permute(3, 2, 1, 0).copy_(dense)
    upstream = [torch.randn(D, T, B).permute(2, 1, 0), torch.randn(D, B).T]
    resets = (torch.rand(T, B) < 0.3).T
    c0 = torch.randn(D, B).T

    def op(gates):
        return qlstm(gates, c0, resets)

    dense_results = run(op, [dense], [g.contiguous() for g in upstream])
    leaf = strided.detach().requires_grad_()
    outputs = op(leaf)
    strided_results = [*outputs, *torch.autograd.grad(outputs, [leaf], upstream)]
    for mine, other in zip(strided_results, dense_results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_repeat_bitwise(dtype):
    gates, c0 = torch.randn(4, 70, 4, 96).to(dtype), torch.randn(4, 96)
    upstream = [torch.randn(4, 70, 96), torch.randn(4, 96)]
    runs = [run(lambda g, c: qlstm(g, c), [gates, c0], upstream) for _ in range(2)]
    for n, (mine, other) in enumerate(zip(*runs, strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", sorted(IMPLS))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T1", [1, 16, 29])
def test_a_carried_state_continues_the_run(T1, dtype):
    gates = torch.randn(2, 30, 4, 64).to(dtype)
    h, c_last = qlstm(gates)
    with torch.no_grad():
        h1, c1 = qlstm(gates[:, :T1])
        h2, c2 = qlstm(gates[:, T1:], c1)
    assert_bitwise("h", torch.cat([h1, h2], 1), h)
    assert_bitwise("c_last", c2, c_last)


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
        (lambda: qlstm(G, impl="fast"), r"want impl in \['eager', 'reference'\], got 'fast'"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^qlstm: .*{words}"):
        call()
