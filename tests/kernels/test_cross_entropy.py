import itertools

import pytest
import torch
from numerics import assert_bitwise, assert_within_budget, check

from hotplate.kernels import native
from hotplate.kernels.cross_entropy import linear_cross_entropy, linear_losses, linear_scores
from hotplate.kernels.cross_entropy.op import CHUNK_BYTES

pytestmark = pytest.mark.usefixtures("poisoned_memory")
IMPLS = ["eager", "reference"]
FAST = ["eager", *(["native"] if native.why_not("cross_entropy") is None else [])]
ALL = [*FAST, "reference"]
OPTIONS = {
    "softcap": {"softcap": 8.0},
    "smoothing": {"label_smoothing": 0.1},
    "z": {"z_loss": 0.01},
    "all": {"logit_scale": 0.5, "softcap": 6.0, "label_smoothing": 0.1, "z_loss": 0.01},
}


def loss_of(*arguments, **options):
    return linear_cross_entropy(*arguments, **options).loss


def inputs(N, D, V, dtype=torch.float32):
    """x, weight, targets, weights (a quarter of them zero)."""
    weights = torch.rand(N) * (torch.rand(N) > 0.25)
    return torch.randn(N, D).to(dtype), torch.randn(V, D).to(dtype), torch.randint(V, (N,)), weights


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunk_bytes", [1, 2 * 11 * 8, 1 << 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_agree_with_differences(impl, chunk_bytes, weighted):
    x, weight, targets, weights = inputs(5, 3, 11, torch.float64)

    def op(x, weight):
        loss = loss_of(
            x,
            weight,
            targets,
            weights if weighted else None,
            logit_scale=0.7,
            chunk_bytes=chunk_bytes,
            impl=impl,
        )
        return 3 * loss

    assert torch.autograd.gradcheck(op, (x.requires_grad_(), weight.requires_grad_()))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 2), (1, 5, 7), (33, 17, 65), (130, 64, 500)]


@pytest.mark.parametrize(
    ("impl", "dtype"), [(i, d) for i in FAST for d in DTYPES if (i, d) != ("native", torch.float16)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 32, 1000])
def test_error_is_within_budget(shape, chunk_rows, dtype, impl):
    x, weight, targets, weights = inputs(*shape, dtype)
    chunk_bytes = chunk_rows * shape[2] * 4

    def op(impl):
        return lambda x, weight: loss_of(
            x, weight, targets, weights, logit_scale=0.5, chunk_bytes=chunk_bytes, impl=impl
        )

    check(op(impl), op("reference"), [x, weight])


def test_it_is_torch_cross_entropy():
    x, weight, targets, _ = inputs(20, 8, 30, torch.float64)
    theirs = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(loss_of(x, weight, targets), theirs)


@pytest.mark.parametrize("impl", ALL)
def test_rows_of_weight_zero_add_exactly_zero(impl):
    x, weight, targets, weights = inputs(12, 8, 30)
    weights = weights.where(torch.arange(12) % 3 > 0, 0).where(torch.arange(12) % 3 == 0, 1.5 * weights + 0.1)
    weights[::3] = 0
    scored = weights != 0

    def results(x, targets, weights):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = loss_of(leaves[0], leaves[1], targets, weights, impl=impl)
        return [loss, *torch.autograd.grad(loss, leaves)]

    x[~scored] = float("nan")
    loss, dx, dweight = results(x, targets, weights)
    kept_loss, kept_dx, kept_dweight = results(x[scored], targets[scored], weights[scored])
    assert_bitwise("dx of unscored rows", dx[~scored], torch.zeros_like(dx[~scored]))
    torch.testing.assert_close(loss, kept_loss)
    torch.testing.assert_close(dx[scored], kept_dx)
    torch.testing.assert_close(dweight, kept_dweight)


@pytest.mark.parametrize("impl", ALL)
def test_no_row_at_all_is_a_loss_of_zero(impl):
    x, weight, targets, weights = inputs(0, 4, 9)
    x.requires_grad_(), weight.requires_grad_()
    loss = loss_of(x, weight, targets, weights, impl=impl)
    loss.backward()
    assert loss.item() == 0 and (weight.grad == 0).all()


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_within_budget_and_agrees_with_differences(options, dtype, fast):
    x, weight, targets, weights = inputs(130, 64, 500, dtype)
    targets[::7] = -100

    def forms(impl, chunk_bytes, targets, weights):
        shared = {"chunk_bytes": chunk_bytes, "impl": impl, **options}
        yield lambda x, weight: loss_of(x, weight, targets, weights, **shared)
        yield lambda x, weight: linear_losses(x, weight, targets, **shared)

    for ours, truth in zip(*(forms(impl, 32 * 500 * 4, targets, weights) for impl in (fast, "reference")), strict=True):
        check(ours, truth, [x, weight])
    if fast == "native" or dtype != torch.float32:
        return  # C has no fp64, and once is enough
    small = [torch.randn(5, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64)]
    for impl in IMPLS:
        for form in forms(impl, 2 * 11 * 8, torch.tensor([3, -100, 0, 10, 5]), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])):
            assert torch.autograd.gradcheck(form, [leaf.requires_grad_() for leaf in small])


@pytest.mark.parametrize("impl", IMPLS)
def test_options_are_torchs_and_the_papers(impl):
    x, weight, targets, _ = inputs(20, 8, 30, torch.float64)
    logits = x @ weight.T
    smooth = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(linear_losses(x, weight, targets, label_smoothing=0.2, impl=impl), smooth)
    plain = torch.nn.functional.cross_entropy(3 * torch.tanh(logits / 3), targets, reduction="none")
    torch.testing.assert_close(linear_losses(x, weight, targets, softcap=3.0, impl=impl), plain)
    nll, _ = linear_scores(x, weight, targets, softcap=3.0, impl=impl)
    torch.testing.assert_close(nll, plain)
    z = torch.nn.functional.cross_entropy(logits, targets, reduction="none") + 0.1 * logits.logsumexp(1).square()
    torch.testing.assert_close(linear_losses(x, weight, targets, z_loss=0.1, impl=impl), z)


@pytest.mark.parametrize("impl", IMPLS)
def test_ignored_targets_add_nothing_and_are_not_counted(impl):
    x, weight, targets, weights = inputs(12, 8, 30)
    targets[::3] = -100
    x[::3] = torch.nan
    theirs = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    found = linear_cross_entropy(*leaves, targets, impl=impl)
    torch.testing.assert_close(found.loss, theirs)
    assert found.weight == 8
    weighted = linear_cross_entropy(*leaves, targets, weights, impl=impl)
    assert weighted.weight == weights[targets != -100].sum()
    found.loss.backward()
    assert_bitwise("dx", x.grad[::3], torch.zeros(4, 8))
    assert weight.grad.isfinite().all()
    assert not linear_losses(x, weight, targets, impl=impl)[::3].any()


def test_losses_by_row_with_weights_are_the_weighted_sum():
    """What arrives later equals what is known before; nothing with N and V in it is kept for it."""
    x, weight, targets, weights = inputs(64, 16, 90)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        losses = linear_losses(*leaves, targets, chunk_bytes=5000)
    assert max(kept) == weight.numel()
    later = torch.autograd.grad(losses, leaves, weights)
    before = torch.autograd.grad(loss_of(*leaves, targets, weights, chunk_bytes=5000), leaves)
    for a, b in zip(later, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert_bitwise("unscored", later[0][weights == 0], torch.zeros_like(later[0][weights == 0]))


def test_a_shared_matrix_gets_the_sum_of_both_gradients():
    """Tied weights: an embedding and the head are one parameter."""
    _, weight, targets, _ = inputs(40, 8, 30)
    weight.requires_grad_()
    tokens = torch.randint(30, (40,))

    def gradient(loss):
        return torch.autograd.grad(loss(torch.nn.functional.embedding(tokens, weight), weight, targets), weight)[0]

    ours, truth = (gradient(lambda *a, impl=impl: loss_of(*a, chunk_bytes=1000, impl=impl)) for impl in IMPLS)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)


def test_the_gradient_has_no_second_derivative_in_silence():
    x, weight, targets, _ = inputs(6, 4, 9)
    (dx,) = torch.autograd.grad(loss_of(x.requires_grad_(), weight, targets), x, create_graph=True)
    with pytest.raises(RuntimeError, match="its gradient has no derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("impl", FAST)
def test_large_logits_stay_finite_and_nan_shows(impl):
    x, weight, targets, _ = inputs(6, 8, 130)
    x = (1e4 * x).requires_grad_()
    loss = loss_of(x, weight, targets, impl=impl)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    for V in (129, 128, 5):  # in a block of columns, and in what is left of a row
        wrong = weight.clone()
        wrong[min(V, 129)] = float("nan")
        losses = linear_losses(x, wrong, targets, impl=impl)
        assert losses.isnan().all()


@pytest.mark.skipif("native" not in FAST, reason="no C compiler")
def test_threads_do_not_change_a_bit():
    x, weight, targets, weights = inputs(37, 16, 300)
    leaves = [x.requires_grad_(), weight.requires_grad_()]

    def results():
        loss = loss_of(*leaves, targets, weights, softcap=5.0, label_smoothing=0.1, impl="native")
        return [loss, *torch.autograd.grad(loss, leaves)]

    one = results()
    try:
        torch.set_num_threads(2)
        for name, mine, other in zip(("loss", "dx", "dweight"), one, results(), strict=True):
            assert_bitwise(name, mine, other)
    finally:
        torch.set_num_threads(1)


def allocations(call):
    """Bytes of every allocation of torch's CPU allocator under `call`, in order; negative where memory is freed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_bytes(call):
    return max(itertools.accumulate(allocations(call)))


def largest_bytes(call):
    return max(allocations(call))


@pytest.mark.parametrize("way", ["sum", "rows"])
def test_peak_memory_is_a_quarter_of_the_plain_form(way):
    """4,096 tokens of GPT-2's vocabulary, on a sixteenth of both axes' product: what scales is the same."""
    N, D, V = 1024, 128, 12576

    def peak(form):
        x, weight, targets, _ = inputs(N, D, V)
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        return peak_bytes(lambda: torch.autograd.grad(form(*leaves, targets), leaves))

    def plain(x, weight, targets):
        return torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")

    chunk_bytes = CHUNK_BYTES["cpu"] // 16
    ours = {
        "sum": lambda *arguments: loss_of(*arguments, chunk_bytes=chunk_bytes),
        "rows": lambda *arguments: linear_losses(*arguments, chunk_bytes=chunk_bytes).sum(),
    }[way]
    assert peak(plain) >= 2 * 4 * N * V  # the count sees the logits and their gradient
    assert peak(ours) <= peak(plain) / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_a_chunk_or_the_weight(dtype):
    N, D, V, chunk_bytes = 512, 8, 256, 32 << 10
    x, weight, targets, weights = inputs(N, D, V, dtype)
    x.requires_grad_(), weight.requires_grad_()
    wide_weight_bytes, wide_x_bytes = 4 * V * D, 4 * N * D
    limit = max(chunk_bytes, wide_weight_bytes, wide_x_bytes)

    def loss(impl):
        loss_of(x, weight, targets, weights, chunk_bytes=chunk_bytes, impl=impl).backward()

    assert largest_bytes(lambda: loss("eager")) <= limit
    assert largest_bytes(lambda: linear_scores(x, weight, targets, chunk_bytes=chunk_bytes)) <= limit
    assert largest_bytes(lambda: loss("reference")) >= 4 * N * V > limit


@pytest.mark.parametrize("leaf", ["x", "weight"])
def test_only_the_gradient_asked_for_is_made(leaf):
    x, weight, targets, weights = inputs(9, 4, 20)
    both = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss_of(*both, targets, weights).backward()
    asked = {"x": x, "weight": weight}
    asked[leaf].requires_grad_()
    loss_of(x, weight, targets, weights).backward()
    assert_bitwise("gradient", asked[leaf].grad, both[leaf == "weight"].grad)


def test_strides_do_not_matter():
    x, weight, targets, weights = inputs(24, 8, 30)
    strided = [x.T.contiguous().T, weight.repeat_interleave(2, 1)[:, ::2]]
    wide = torch.stack([targets, targets], 1)[:, 0], torch.stack([weights, weights], 1)[:, 0]
    pairs = []
    for leaves, rest in (((x, weight), (targets, weights)), (strided, wide)):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = loss_of(*leaves, *rest, chunk_bytes=1000)
        pairs.append([loss, *torch.autograd.grad(loss, leaves)])
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_runs_repeat_bitwise_and_a_second_backward_too():
    x, weight, targets, weights = inputs(70, 16, 90)
    x.requires_grad_(), weight.requires_grad_()
    losses = [loss_of(x, weight, targets, weights, chunk_bytes=5000) for _ in range(2)]
    gradients = [torch.autograd.grad(losses[n], [x, weight], retain_graph=True) for n in (0, 1, 1)]
    assert_bitwise("loss", *losses)
    for other in gradients[1:]:
        assert_bitwise("dx", gradients[0][0], other[0])
        assert_bitwise("dweight", gradients[0][1], other[1])


def test_gradients_changed_in_place_leave_a_kept_graph_as_it_was():
    x, weight, targets, _ = inputs(6, 4, 9)
    weight.requires_grad_()
    loss = loss_of(x, weight, targets)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad.zero_()
    loss.backward(retain_graph=True)
    assert_bitwise("dweight", weight.grad, first)
    loss.backward()
    assert_bitwise("their sum", weight.grad, 2 * first)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 20])
def test_scores_are_the_loss_of_each_row_and_the_rank_of_its_target(impl, chunk_bytes):
    x, weight, targets, _ = inputs(13, 6, 40)
    nll, rank = linear_scores(x, weight, targets, logit_scale=0.5, chunk_bytes=chunk_bytes, impl=impl)
    logits = 0.5 * x.double() @ weight.double().T
    truth = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    own = torch.nn.functional.cross_entropy(0.5 * x @ weight.T, targets, reduction="none")
    assert_within_budget("nll", nll, own, truth)
    order = logits.argsort(1, descending=True)
    assert rank.dtype == torch.int64 and torch.equal(order[torch.arange(13), rank], targets)


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_logits_do_not_outrank_the_target(impl):
    x, weight = torch.ones(2, 1), torch.tensor([[1.0], [2.0], [1.0], [1.0]])
    _, rank = linear_scores(x, weight, torch.tensor([2, 1]), impl=impl)
    assert rank.tolist() == [1, 0]


def test_scores_have_no_gradient_and_the_dtype_of_sums():
    x, weight, targets, _ = inputs(4, 3, 5, torch.bfloat16)
    nll, _ = linear_scores(x.requires_grad_(), weight, targets)
    assert nll.dtype == torch.float32 and not nll.requires_grad


X, W, IDS = torch.zeros(3, 4), torch.zeros(7, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: linear_cross_entropy(X[None], W, IDS),
            r"want x \[N, D\] and weight \[V, D\], got x \[1, 3, 4\]",
        ),
        (lambda: linear_cross_entropy(X, W.T, IDS), r"weight \[4, 7\]"),
        (lambda: linear_cross_entropy(X, W.bfloat16(), IDS), "one dtype"),
        (lambda: linear_cross_entropy(X.int(), W.int(), IDS), "floating x"),
        (lambda: linear_cross_entropy(X, W, IDS.int()), r"want targets int64 \[3\], got torch.int32"),
        (lambda: linear_cross_entropy(X, W, IDS[:2]), r"got torch.int64 \[2\]"),
        (lambda: linear_cross_entropy(X, W, IDS + 7), r"want targets in 0..6, got 7..7"),
        (lambda: linear_cross_entropy(X, W, IDS - 101), r"got -101..-101"),
        (
            lambda: linear_cross_entropy(X, W, IDS, torch.zeros(2)),
            r"want weights float \[3\] without gradient",
        ),
        (lambda: linear_cross_entropy(X, W, IDS, IDS), "torch.int64"),
        (lambda: linear_cross_entropy(X, W, IDS, torch.zeros(3, requires_grad=True)), "requires_grad=True"),
        (lambda: linear_cross_entropy(X, W, IDS, chunk_bytes=0), "want chunk_bytes > 0, got 0"),
        (lambda: linear_cross_entropy(X, W, IDS, softcap=-1), "want softcap >= 0"),
        (lambda: linear_cross_entropy(X, W, IDS, label_smoothing=1), "0 <= label_smoothing < 1"),
        (
            lambda: linear_cross_entropy(X.half(), W.half(), IDS, impl="native"),
            "want a CPU tensor of float32 or bfloat16",
        ),
        (
            lambda: linear_cross_entropy(X, W, IDS, impl="liger"),
            r"want impl in \['auto', 'eager', 'native', 'reference', 'triton'\]",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^linear_cross_entropy: .*{words}"):
        call()


def test_scores_check_the_same_facts():
    with pytest.raises(ValueError, match=r"^linear_scores: want targets in 0..6"):
        linear_scores(X, W, IDS + 7)
    with pytest.raises(ValueError, match=r"^linear_scores: want targets in 0..6, got -100..-100; score real targets"):
        linear_scores(X, W, IDS - 100)
