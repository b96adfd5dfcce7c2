"""The error rule of every kernel test: truth is the reference in float64, the budget torch's own error.

Let e be the largest error of torch at the working dtype. Ours must stay within 2 e plus one unit in the last
place of the largest true magnitude, for every output and every gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Op = Callable[..., Tensor | tuple[Tensor, ...]]


def ulp(truth: Tensor, dtype: torch.dtype) -> float:
    """One unit in the last place of `dtype` at the largest magnitude of `truth`."""
    largest = truth.abs().max()
    return (torch.exp2(torch.floor(torch.log2(largest))) * torch.finfo(dtype).eps).item() if largest > 0 else 0.0


def assert_within_budget(name: str, ours: Tensor, own: Tensor, truth: Tensor) -> None:
    """`own` is what torch computes at the dtype of `ours`."""
    assert ours.shape == truth.shape, f"{name}: shape {list(ours.shape)}, want {list(truth.shape)}"
    assert ours.dtype == own.dtype, f"{name}: dtype {ours.dtype}, want {own.dtype}"
    assert ours.isfinite().all(), f"{name}: not finite"
    error = (ours.double() - truth).abs().max().item()
    own_error = (own.double() - truth).abs().max().item()
    limit = 2 * own_error + ulp(truth, ours.dtype)
    assert error <= limit, f"{name}: error {error:.3g}, limit {limit:.3g} (torch's own error {own_error:.3g})"


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


def check(op: Op, reference: Op, inputs: Sequence[Tensor], own: Op | None = None) -> None:
    """Asserts the rule for outputs and gradients of op(*inputs); inputs are floating and all get a gradient.

    own: what torch itself would run at the working dtype; None is the reference.
    """
    probe = run(reference, [x.double() for x in inputs], None)
    working = [y.dtype for y in run(op, inputs, None)]
    upstream = [torch.randn_like(y).to(dtype) for y, dtype in zip(probe, working, strict=True)]
    truth = run(reference, [x.double() for x in inputs], upstream)
    torchs = run(own or reference, inputs, upstream)
    ours = run(op, inputs, upstream)
    names = [f"output {n}" for n in range(len(probe))] + [f"gradient {n}" for n in range(len(inputs))]
    for name, mine, torch_result, true in zip(names, ours, torchs, truth, strict=True):
        assert_within_budget(name, mine, torch_result, true)


def relative(ours: Tensor, truth: Tensor) -> float:
    """Error of the whole tensor as a share of its norm."""
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()


def assert_bitwise(name: str, ours: Tensor, other: Tensor) -> None:
    assert torch.equal(ours, other), f"{name}: {(ours != other).sum().item()} of {ours.numel()} values differ"
