import pytest
import torch
from numerics import assert_bitwise, assert_long_memory, assert_resets_stop_a_nan, check, run

from hotplate.kernels.lstm_dense import import_torch_lstm, lstm_dense

pytestmark = pytest.mark.usefixtures("poisoned_memory")
IMPLS = ("eager", "native", "reference")
WIDE = ("eager", "reference")  # those that take float64


def inputs(B, T, D, dtype=torch.float32):
    state = torch.promote_types(dtype, torch.float32)
    return [
        torch.randn(B, T, 4, D).to(dtype),
        (torch.randn(4, D, D) / D**0.5).to(dtype),
        torch.randn(B, D).to(dtype).to(state),
        torch.randn(B, D, dtype=state),
    ]


@pytest.mark.parametrize("impl", WIDE)
def test_gradients_agree_with_differences(impl):
    resets = torch.tensor([[True, False, True, True], [False, False, False, True]])
    leaves = [x.requires_grad_() for x in inputs(2, 4, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: lstm_dense(*x, resets, forget_offset=0.7, impl=impl), leaves)


RUNS = [("eager", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
RUNS += [("native", dtype) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 33), (3, 9, 65), (8, 9, 65), (9, 5, 80)], ids=str)
def test_error_is_within_budget(shape, impl, dtype):
    resets = torch.rand(shape[:2]) < 0.2

    def op(impl):
        return lambda *leaves: lstm_dense(*leaves, resets, forget_offset=1.0, impl=impl)

    check(op(impl), op("reference"), lambda: inputs(*shape, dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("impl", WIDE)
def test_imported_weights_are_torch_lstm(impl, bias):
    B, T, D, width = 3, 11, 5, 7
    theirs = torch.nn.LSTM(width, D, num_layers=2, bidirectional=True, bias=bias, batch_first=True).double()
    x = torch.randn(B, T, width, dtype=torch.float64)
    h0, c0 = torch.randn(2, 4, B, D, dtype=torch.float64)
    wanted, (h_wanted, c_wanted) = theirs(x, (h0, c0))

    n, got, states = 0, x, []
    for layer in range(2):
        directions = []
        for reverse in (False, True):
            weights = import_torch_lstm(theirs, layer, reverse)
            source = got.flip(1) if reverse else got
            gates = torch.nn.functional.linear(source, weights.weight, weights.bias).unflatten(-1, (4, D))
            h, *last = lstm_dense(gates, weights.recurrent, h0[n], c0[n], impl=impl)
            directions.append(h.flip(1) if reverse else h)
            states.append(last)
            n += 1
        got = torch.cat(directions, -1)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for place, state in enumerate((h_wanted, c_wanted)):
        torch.testing.assert_close(torch.stack([last[place] for last in states]), state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", WIDE)
def test_gradients_are_those_of_torch_lstm(impl):
    theirs = torch.nn.LSTM(4, 6, batch_first=True).double()
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    upstream = torch.randn(2, 7, 6, dtype=torch.float64)
    wanted = torch.autograd.grad(theirs(x)[0], list(theirs.parameters()), upstream)

    weights = import_torch_lstm(theirs)
    leaves = [w.requires_grad_() for w in (weights.weight, weights.recurrent, weights.bias)]
    gates = torch.nn.functional.linear(x, leaves[0], leaves[2]).unflatten(-1, (4, 6))
    d_weight, d_recurrent, d_bias = torch.autograd.grad(lstm_dense(gates, leaves[1], impl=impl)[0], leaves, upstream)
    ours = [d_weight, d_recurrent.mT.flatten(0, 1), d_bias, d_bias]
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_importing_what_is_no_plain_lstm_says_so():
    with pytest.raises(ValueError, match="^import_torch_lstm: want torch.nn.LSTM with proj_size=0"):
        import_torch_lstm(torch.nn.LSTM(4, 6, proj_size=2))
    with pytest.raises(ValueError, match="want a layer below 1, not reversed, got layer=0, reverse=True"):
        import_torch_lstm(torch.nn.LSTM(4, 6), reverse=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_runs_repeat_bitwise(impl):
    leaves, upstream = inputs(4, 10, 32), [torch.randn(4, 10, 32), torch.randn(4, 32), torch.randn(4, 32)]
    first, second = (run(lambda *x: lstm_dense(*x, impl=impl), leaves, upstream) for _ in range(2))
    for n, (mine, other) in enumerate(zip(first, second, strict=True)):
        assert_bitwise(f"result {n}", mine, other)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_documents_are_each_document_alone(impl):
    gates, recurrent, _, _ = inputs(1, 9, 40)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, [0, 4, 5]] = True
    h, _, _ = lstm_dense(gates, recurrent, None, None, resets, impl=impl)
    for span in (slice(0, 4), slice(4, 5), slice(5, 9)):
        assert_bitwise("h", h[:, span], lstm_dense(gates[:, span], recurrent, impl=impl)[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_carried_state_continues_the_run(impl):
    gates, recurrent, h0, c0 = inputs(3, 9, 24, torch.bfloat16)
    whole = lstm_dense(gates, recurrent, h0, c0, impl=impl)
    h1, *state = lstm_dense(gates[:, :4], recurrent, h0, c0, impl=impl)
    h2, *state = lstm_dense(gates[:, 4:], recurrent, *state, impl=impl)
    for mine, other in zip((torch.cat([h1, h2], 1), *state), whole, strict=True):
        assert_bitwise("split", mine, other)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_does_not_outlive_a_reset(impl):
    gates, recurrent, *starts = inputs(2, 9, 5)
    assert_resets_stop_a_nan(lambda gates, *rest: lstm_dense(gates, recurrent, *rest, impl=impl), gates, starts)


@pytest.mark.parametrize("impl", ["eager", "native"])
def test_torch_accepts_the_operator(impl):
    gates, recurrent, h0, c0 = inputs(2, 3, 8)
    gates, *others = (x.requires_grad_() for x in (gates[:, :, :, None], recurrent[:, None], h0[:, None], c0[:, None]))
    torch.library.opcheck(torch.ops.hotplate.lstm_dense.default, (gates, None, *others, None, 0.5, impl, True))


def test_long_memory_keeps_its_gradient():
    """Weights are small: h is rounded before each product by definition, which with larger ones is all that shows."""
    inputs = [torch.randn(1, 2048, 4, 8).bfloat16(), (0.02 * torch.randn(4, 8, 8)).bfloat16()]
    assert_long_memory(lambda impl, *x: lstm_dense(*x, forget_offset=6.0, impl=impl), inputs, ["eager", "native"])


G, R = torch.zeros(2, 3, 4, 5), torch.zeros(4, 5, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lstm_dense(G[:, :, :3], R), r"want gates \[B, T >= 1, 4, D\], got \[2, 3, 3, 5\]"),
        (lambda: lstm_dense(G[:, :0], R), "T >= 1"),
        (lambda: lstm_dense(G.int(), R), "floating gates"),
        (lambda: lstm_dense(G, R.int()), "floating recurrent"),
        (lambda: lstm_dense(G, R[:, :4]), r"want recurrent \[4, 5, 5\] on cpu, got \[4, 4, 5\]"),
        (lambda: lstm_dense(G, R, torch.zeros(5)), r"want h0 None or \[2, 5\] torch.float32"),
        (lambda: lstm_dense(G, R, None, torch.zeros(2, 5).bfloat16()), "want c0 .*torch.bfloat16"),
        (lambda: lstm_dense(G, R, None, None, torch.zeros(2, 4).bool()), r"want resets None or bool \[2, 3\]"),
        (lambda: lstm_dense(G, R, impl="fast"), r"want impl in \['auto', 'eager', 'native', .*\], got 'fast'"),
        (lambda: lstm_dense(G, R, impl="triton"), "impl='triton'"),
        (lambda: lstm_dense(G.half(), R, impl="native"), "want a CPU tensor of float32.*got torch.float16"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^lstm_dense: .*{words}"):
        call()
