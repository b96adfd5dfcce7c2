import pytest
import torch
from numerics import assert_bitwise, assert_within_budget, check
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hotplate.kernels.cross_entropy import linear_cross_entropy, linear_scores
from hotplate.kernels.cross_entropy.op import LOSSES, SCORES

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(N, D, V, dtype=torch.float32):
    """x, weight, targets, weights (a quarter of them zero)."""
    weights = torch.rand(N) * (torch.rand(N) > 0.25)
    return torch.randn(N, D).to(dtype), torch.randn(V, D).to(dtype), torch.randint(V, (N,)), weights


@pytest.mark.parametrize("impl", sorted(LOSSES))
@pytest.mark.parametrize("chunk_bytes", [1, 2 * 11 * 8, 1 << 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_agree_with_differences(impl, chunk_bytes, weighted):
    x, weight, targets, weights = inputs(5, 3, 11, torch.float64)

    def op(x, weight):
        loss = linear_cross_entropy(
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


SHAPES = [(1, 1, 2), (1, 5, 7), (33, 17, 65), (130, 64, 500)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 32, 1000])
def test_error_is_within_budget(shape, chunk_rows, dtype):
    x, weight, targets, weights = inputs(*shape, dtype)
    chunk_bytes = chunk_rows * shape[2] * 4

    def op(impl):
        return lambda x, weight: linear_cross_entropy(
            x, weight, targets, weights, logit_scale=0.5, chunk_bytes=chunk_bytes, impl=impl
        )

    check(op("eager"), op("reference"), [x, weight])


def test_it_is_torch_cross_entropy():
    x, weight, targets, _ = inputs(20, 8, 30, torch.float64)
    theirs = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets), theirs)


@pytest.mark.parametrize("impl", sorted(LOSSES))
def test_rows_of_weight_zero_add_exactly_zero(impl):
    x, weight, targets, weights = inputs(12, 8, 30)
    weights = weights.where(torch.arange(12) % 3 > 0, 0).where(torch.arange(12) % 3 == 0, 1.5 * weights + 0.1)
    weights[::3] = 0
    scored = weights != 0

    def results(x, targets, weights):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = linear_cross_entropy(leaves[0], leaves[1], targets, weights, impl=impl)
        return [loss, *torch.autograd.grad(loss, leaves)]

    x[~scored] = float("nan")
    loss, dx, dweight = results(x, targets, weights)
    kept_loss, kept_dx, kept_dweight = results(x[scored], targets[scored], weights[scored])
    assert_bitwise("dx of unscored rows", dx[~scored], torch.zeros_like(dx[~scored]))
    torch.testing.assert_close(loss, kept_loss)
    torch.testing.assert_close(dx[scored], kept_dx)
    torch.testing.assert_close(dweight, kept_dweight)


@pytest.mark.parametrize("impl", sorted(LOSSES))
def test_no_row_at_all_is_a_loss_of_zero(impl):
    x, weight, targets, weights = inputs(0, 4, 9)
    x.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, targets, weights, impl=impl)
    loss.backward()
    assert loss.item() == 0 and (weight.grad == 0).all()


def test_large_logits_stay_finite():
    x, weight, targets, _ = inputs(6, 8, 30)
    x = (1e4 * x).requires_grad_()
    loss = linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation under it returns."""

    def __init__(self):
        super().__init__()
        self.largest_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest_bytes = max(self.largest_bytes, leaf.numel() * leaf.element_size())
        return result


def largest_bytes(call):
    with LargestTensor() as seen:
        call()
    return seen.largest_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_a_chunk_or_the_weight(dtype):
    N, D, V, chunk_bytes = 512, 8, 256, 32 << 10
    x, weight, targets, weights = inputs(N, D, V, dtype)
    x.requires_grad_(), weight.requires_grad_()
    wide_weight_bytes, wide_x_bytes = 4 * V * D, 4 * N * D
    limit = max(chunk_bytes, wide_weight_bytes, wide_x_bytes)

    def loss(impl):
        linear_cross_entropy(x, weight, targets, weights, chunk_bytes=chunk_bytes, impl=impl).backward()

    assert largest_bytes(lambda: loss("eager")) <= limit
    assert largest_bytes(lambda: linear_scores(x, weight, targets, chunk_bytes=chunk_bytes)) <= limit
    assert largest_bytes(lambda: loss("reference")) >= 4 * N * V > limit


@pytest.mark.parametrize("leaf", ["x", "weight"])
def test_only_the_gradient_asked_for_is_made(leaf):
    x, weight, targets, weights = inputs(9, 4, 20)
    both = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    linear_cross_entropy(*both, targets, weights).backward()
    asked = {"x": x, "weight": weight}
    asked[leaf].requires_grad_()
    linear_cross_entropy(x, weight, targets, weights).backward()
    assert_bitwise("gradient", asked[leaf].grad, both[leaf == "weight"].grad)


def test_strides_do_not_matter():
    x, weight, targets, weights = inputs(24, 8, 30)
    strided = [x.T.contiguous().T, weight.repeat_interleave(2, 1)[:, ::2]]
    wide = torch.stack([targets, targets], 1)[:, 0], torch.stack([weights, weights], 1)[:, 0]
    pairs = []
    for leaves, rest in (((x, weight), (targets, weights)), (strided, wide)):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = linear_cross_entropy(*leaves, *rest, chunk_bytes=1000)
        pairs.append([loss, *torch.autograd.grad(loss, leaves)])
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_runs_repeat_bitwise_and_a_second_backward_too():
    x, weight, targets, weights = inputs(70, 16, 90)
    x.requires_grad_(), weight.requires_grad_()
    losses = [linear_cross_entropy(x, weight, targets, weights, chunk_bytes=5000) for _ in range(2)]
    gradients = [torch.autograd.grad(losses[n], [x, weight], retain_graph=True) for n in (0, 1, 1)]
    assert_bitwise("loss", *losses)
    for other in gradients[1:]:
        assert_bitwise("dx", gradients[0][0], other[0])
        assert_bitwise("dweight", gradients[0][1], other[1])


@pytest.mark.parametrize("impl", sorted(SCORES))
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


@pytest.mark.parametrize("impl", sorted(SCORES))
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
        (lambda: linear_cross_entropy(X, W, IDS - 100), r"got -100..-100"),
        (
            lambda: linear_cross_entropy(X, W, IDS, torch.zeros(2)),
            r"want weights float \[3\] without gradient",
        ),
        (lambda: linear_cross_entropy(X, W, IDS, IDS), "torch.int64"),
        (lambda: linear_cross_entropy(X, W, IDS, torch.zeros(3, requires_grad=True)), "requires_grad=True"),
        (lambda: linear_cross_entropy(X, W, IDS, chunk_bytes=0), "want chunk_bytes > 0, got 0"),
        (lambda: linear_cross_entropy(X, W, IDS, impl="liger"), r"want impl in \['auto', 'eager', 'reference'\]"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^linear_cross_entropy: .*{words}"):
        call()


def test_scores_check_the_same_facts():
    with pytest.raises(ValueError, match=r"^linear_scores: want targets in 0..6"):
        linear_scores(X, W, IDS + 7)
