import pytest
import torch
import updates

from hotplate.kernels import native
from hotplate.kernels.adamw import adamw

pytestmark = pytest.mark.usefixtures("poisoned_memory")
FORMS = ["eager", *(["native"] if native.why_not("adamw") is None else [])]


def test_the_definition_is_torchs_adamw():
    (weights, *_), _ = updates.course("reference", torch.float64)
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(shape, generator=generator).double().requires_grad_() for shape in updates.SHAPES]
    plain = torch.optim.AdamW(leaves, lr=1e-2, foreach=False, **updates.OPTIONS)
    for _ in range(4):
        for leaf in leaves:
            leaf.grad = 0.5 * torch.randn(leaf.shape, generator=generator).double()
        plain.step()
    for mine, theirs in zip(weights, leaves, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip", [-1, 2])
@pytest.mark.parametrize("impl", ["reference", *FORMS])
def test_error_is_within_budget_and_a_skipped_update_changes_nothing(impl, skip):
    updates.assert_the_definition(impl, "eager", skip)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", *FORMS])
def test_narrow_gradients_are_converted_as_they_are_read(impl, dtype):
    if impl == "native" and dtype == torch.float16:
        with pytest.raises(ValueError, match=r"^adamw: want float32 or bfloat16 gradients, got torch.float16"):
            updates.course(impl, arriving=dtype)
        return
    updates.assert_the_definition(impl, "eager", skip=2, arriving=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", *FORMS])
def test_copies_are_the_weights_rounded(impl, dtype):
    if impl == "native" and dtype == torch.float16:
        with pytest.raises(ValueError, match=r"^adamw: want bfloat16 copies, got torch.float16"):
            updates.course(impl, copies=dtype)
        return
    (weights, *_), copies = updates.course(impl, copies=dtype, skip=1)
    for weight, copy in zip(weights, copies, strict=True):
        assert torch.equal(weight.to(dtype), copy)


@pytest.mark.parametrize("impl", FORMS)
def test_runs_repeat_bitwise_whatever_the_threads(impl):
    first, _ = updates.course(impl)
    try:
        torch.set_num_threads(2)
        updates.assert_same(updates.course(impl)[0], first)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("impl", ["reference", *FORMS])
def test_the_learning_rate_may_be_a_tensor(impl):
    ends = []
    for lr in (0.01, torch.tensor(0.01)):
        w = [torch.ones(7)]
        state = [torch.zeros(7)], [torch.zeros(7)], [torch.zeros(())]
        adamw(w, [torch.arange(7.0)], *state, lr=lr, scale=torch.ones(()), skipped=torch.zeros(()), impl=impl)
        ends.append(w[0])
    torch.testing.assert_close(*ends, rtol=1e-7, atol=0)
    assert ends[0][0] == 1 and (ends[0][1:] < 1).all()


def test_the_host_does_not_wait():
    updates.assert_the_host_does_not_wait("eager")


def call(weights, **changes):
    made = {"gradients": [torch.zeros_like(w) for w in weights], "first": [torch.zeros_like(w) for w in weights]}
    made |= {"second": [torch.zeros_like(w) for w in weights], "steps": [torch.zeros(()) for _ in weights]}
    made |= {"lr": 0.1, "scale": torch.ones(()), "skipped": torch.zeros(())} | changes
    return lambda: adamw(weights, **made)


W = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (call([W], gradients=[]), "want 1 tensors of each, got .*'gradients': 0"),
        (call([W], gradients=[W.T.contiguous().T]), r"want contiguous gradients torch.float32 \[2, 3\]"),
        (call([W, W], gradients=[W, W.bfloat16()]), "want contiguous gradients torch.float32"),
        (call([W], first=[W.double()]), r"want contiguous first torch.float32 \[2, 3\] on cpu, got torch.float64"),
        (call([W], steps=[torch.zeros(1)]), r"want steps float32 \[\] on cpu"),
        (call([W], scale=torch.ones(1)), r"want scale float32 \[\] on cpu"),
        (call([W], copies=[W[:1]]), "want contiguous copies"),
        (call([W], impl="apexx"), "want impl in"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(wrong, words):
    with pytest.raises(ValueError, match=f"^adamw: {words}"):
        wrong()


def test_nothing_to_update_is_nothing_to_do():
    call([])()
