"""A few AdamW updates of tensors of several sizes, and what has to hold for every form of them."""

from collections.abc import Sequence

import torch
from numerics import assert_within_budget
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hotplate.kernels.adamw import adamw

SHAPES = ((1,), (3, 5), (2049,), (70, 33))  # one; less than a block; past a block; several
KINDS = ("weights", "m", "v", "steps")
OPTIONS = {"betas": (0.9, 0.95), "weight_decay": 0.1}


def course(
    impl: str,
    dtype: torch.dtype = torch.float32,
    copies: torch.dtype | None = None,
    skip: int = -1,
    updates: int = 4,
    arriving: torch.dtype | None = None,
) -> tuple[list[list[Tensor]], list[Tensor] | None]:
    """([weights, first and second moments, steps], copies) after some updates; update `skip` is skipped. Gradients come
    in `arriving`, none = dtype."""
    generator = torch.Generator().manual_seed(1)

    def drawn() -> list[Tensor]:
        return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]

    weights = drawn()
    state = [weights, *([torch.zeros_like(w) for w in weights] for _ in range(2)), [torch.zeros(()) for _ in weights]]
    narrow = None if copies is None else [w.to(copies) for w in weights]
    for update in range(updates):
        gradients = [g.to(arriving or dtype) for g in drawn()]
        if update == skip:
            gradients[1].fill_(torch.nan)
        before = [x.clone() for group in [*state, narrow or []] for x in group]
        skipped = torch.tensor(float(update == skip))
        adamw(
            weights, gradients, *state[1:], lr=1e-2, scale=torch.tensor(0.5), skipped=skipped, copies=narrow, impl=impl,
            **OPTIONS,
        )  # fmt: skip
        after = [x for group in [*state, narrow or []] for x in group]
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(same) if update == skip else not any(same)
    return state, narrow


def assert_the_definition(impl: str, own: str, skip: int = -1, arriving: torch.dtype | None = None) -> None:
    """The error rule for weights, moments and steps; `own` names the form that is torch's."""
    truth = course("reference", torch.float64, skip=skip, arriving=arriving)
    ours, torchs = (course(name, skip=skip, arriving=arriving) for name in (impl, own))
    for kind, mine, theirs, true in zip(KINDS, ours[0], torchs[0], truth[0], strict=True):
        joined = [torch.cat([x.flatten() for x in group]) for group in (mine, theirs, true)]
        assert_within_budget(kind, joined[0], joined[1], joined[2].double())


class NoReadingBack(TorchDispatchMode):
    """Fails where a value goes from a tensor to the host: on a GPU that waits for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def assert_the_host_does_not_wait(impl: str) -> None:
    tensors = [[torch.ones(7)] for _ in range(4)]
    scalars = torch.full((), 0.01), torch.ones(()), torch.zeros(())
    with NoReadingBack():
        adamw(*tensors, [scalars[2].clone()], lr=scalars[0], scale=scalars[1], skipped=scalars[2], impl=impl)


def assert_same(state: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> None:
    for a, b in zip((x for group in state for x in group), (x for group in other for x in group), strict=True):
        assert torch.equal(a, b)
