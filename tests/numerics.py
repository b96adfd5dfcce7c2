"""The error rule of every kernel test: truth is the reference in float64, the budget torch's own error.

Let e be the largest error of torch at the working dtype. Ours must stay within 2 e plus one unit in the last
place of the largest true magnitude, for every output and every gradient.

A maximum over few numbers is luck: torch's error of a single number may be 0. So a result of fewer than NUMBERS numbers
is judged on several draws of the inputs, until it has made up that many numbers or DRAWS draws were made: both errors
and the magnitude are then the largest over all draws. This is the same rule on a larger sample, and the size of the
smallest result alone decides how large: a test hands over how its inputs are drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Op = Callable[..., Tensor | tuple[Tensor, ...]]
Draw = Callable[[], Sequence[Tensor]]
NUMBERS = 128
DRAWS = 16


@dataclass(frozen=True)
class Errors:
    """What the rule compares, for one result: largest errors and largest true magnitude."""

    ours: float
    own: float
    magnitude: float
    dtype: torch.dtype
    numbers: int

    def with_another(self, other: "Errors") -> "Errors":
        """Of both draws together."""
        ours, own = max(self.ours, other.ours), max(self.own, other.own)
        return Errors(ours, own, max(self.magnitude, other.magnitude), self.dtype, self.numbers)

    def assert_within_budget(self, name: str) -> None:
        limit = 2 * self.own + ulp_at(self.magnitude, self.dtype)
        assert self.ours <= limit, (
            f"{name}: error {self.ours:.3g}, limit {limit:.3g} (torch's own error {self.own:.3g})"
        )


def ulp_at(magnitude: float, dtype: torch.dtype) -> float:
    """One unit in the last place of `dtype` at `magnitude`."""
    return 2.0 ** math.floor(math.log2(magnitude)) * torch.finfo(dtype).eps if magnitude > 0 else 0.0


def errors(name: str, ours: Tensor, own: Tensor, truth: Tensor) -> Errors:
    """`own` is what torch computes at the dtype of `ours`."""
    assert ours.shape == truth.shape, f"{name}: shape {list(ours.shape)}, want {list(truth.shape)}"
    assert ours.dtype == own.dtype, f"{name}: dtype {ours.dtype}, want {own.dtype}"
    assert ours.isfinite().all(), f"{name}: not finite"
    error, own_error = ((x.double() - truth).abs().max().item() for x in (ours, own))
    return Errors(error, own_error, truth.abs().max().item(), ours.dtype, truth.numel())


def assert_within_budget(name: str, ours: Tensor, own: Tensor, truth: Tensor) -> None:
    """`own` is what torch computes at the dtype of `ours`."""
    errors(name, ours, own, truth).assert_within_budget(name)


def run(op: Op, inputs: Sequence[Tensor], upstream: Sequence[Tensor] | None) -> list[Tensor]:
    """Outputs of op(*inputs), then the gradient of every input under the upstream gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = op(*leaves)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if upstream is None:
        return [y.detach() for y in outputs]
    matched = [g.to(y.dtype) for g, y in zip(upstream, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, matched)
    return [y.detach() for y in outputs] + list(gradients)


def _errors_of(op: Op, reference: Op, inputs: Sequence[Tensor], own: Op) -> dict[str, Errors]:
    """By the name of a result: every output and the gradient of every input."""
    probe = run(reference, [x.double() for x in inputs], None)
    working = [y.dtype for y in run(own, inputs, None)]
    upstream = [torch.randn_like(y).to(dtype) for y, dtype in zip(probe, working, strict=True)]
    truth = run(reference, [x.double() for x in inputs], upstream)
    torchs = run(own, inputs, upstream)
    ours = run(op, inputs, upstream)
    names = [f"output {n}" for n in range(len(probe))] + [f"gradient {n}" for n in range(len(inputs))]
    return {name: errors(name, *results) for name, *results in zip(names, ours, torchs, truth, strict=True)}


def check(op: Op, reference: Op, inputs: Sequence[Tensor] | Draw, own: Op | None = None) -> None:
    """Asserts the rule for outputs and gradients of op(*inputs); inputs are floating and all get a gradient.

    inputs: how to draw them, for a test whose results may be small; else the tensors themselves.
    own: what torch itself would run at the working dtype; None is the reference.
    """
    drawn = inputs() if callable(inputs) else inputs
    found = _errors_of(op, reference, drawn, own or reference)
    if callable(inputs):
        fewest = min(result.numbers for result in found.values())
        for _ in range(1, min(DRAWS, math.ceil(NUMBERS / fewest))):
            another = _errors_of(op, reference, inputs(), own or reference)
            found = {name: result.with_another(another[name]) for name, result in found.items()}
    for name, result in found.items():
        result.assert_within_budget(name)


def relative(ours: Tensor, truth: Tensor) -> float:
    """Error of the whole tensor as a share of its norm."""
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()


def assert_bitwise(name: str, ours: Tensor, other: Tensor) -> None:
    assert torch.equal(ours, other), f"{name}: {(ours != other).sum().item()} of {ours.numel()} values differ"


def assert_resets_stop_a_nan(op: Op, gates: Tensor, starts: Sequence[Tensor]) -> None:
    """op(gates [2, 9, ...], *starts, resets) -> h, states: NaN in a state, or in a gradient, ends at a document's end.

    Row 0 starts at NaN and is reset at step 0; its middle document, steps 4 and 5, is poisoned in all gates and in
    what arrives at h. Row 1 is poisoned from step 5 on and never reset.
    """
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, [0, 4, 6]] = True
    poisoned, bad_starts = gates.clone(), [start.clone() for start in starts]
    poisoned[0, 4:6] = torch.nan
    poisoned[1, 5:] = torch.nan
    for start in bad_starts:
        start[0] = torch.nan
    leaves = [x.requires_grad_() for x in (poisoned, *bad_starts)]
    h, *states = op(*leaves, resets)
    upstream = torch.randn_like(h)
    upstream[0, 4:6] = torch.nan
    dgates, *dstarts = torch.autograd.grad([h, *states], leaves, [upstream, *map(torch.ones_like, states)])
    good = torch.ones(9, dtype=torch.bool)
    good[4:6] = False
    assert h[0, good].isfinite().all() and h[0, ~good].isnan().all(), "h"
    assert all(state[0].isfinite().all() and state[1].isnan().all() for state in states), "last states"
    assert dgates[0, good].isfinite().all() and dgates[0, ~good].isnan().any(), "gradient of gates"
    assert all((d[0] == 0).all() for d in dstarts), "gradient of the start"


def assert_long_memory(op: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], forms: Sequence[str]) -> None:
    """Over T steps at a forget bias of 6, bfloat16 costs no form more than the rounding of its results: 2e-3.

    op(impl, *inputs, *states) -> h, *states with gates [B, T, ...] in bfloat16 as the first input; c is the last state.
    That the limit can fail: where c is rounded to bfloat16 at every step, errors of gradients are ten times as large.
    """

    def rounding_the_state(gates: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        steps, states = [], ()
        for step in gates.split(1, 1):
            h, *states = op("reference", step, *weights, *states)
            states[-1] = states[-1].bfloat16().float()
            steps.append(h)
        return torch.cat(steps, 1), *states

    with torch.no_grad():
        upstream = [torch.randn_like(y) for y in op(forms[0], *inputs)]
    truth = run(lambda *x: op("reference", *x), [x.double() for x in inputs], upstream)
    for impl in forms:
        ours = run(lambda *x, impl=impl: op(impl, *x), inputs, upstream)
        shares = [relative(mine, true) for mine, true in zip(ours, truth, strict=True)]
        assert max(shares) <= 2e-3, f"{impl}: {shares}"
    gradients = slice(len(upstream), None)
    rounded = run(rounding_the_state, inputs, upstream)
    for mine, true in zip(rounded[gradients], truth[gradients], strict=True):
        assert relative(mine, true) >= 2e-2, "the limit would not see a state of 16 bits"
