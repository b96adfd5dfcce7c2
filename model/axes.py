"""Which axis of each parameter means what: the one declaration behind parameter groups, costs, growth and scaling.

Axis names: vocab, position, residual, ffn, heads (features of all heads: heads * head_width), kv_heads (the same for
key/value heads), head (a head's number), shared (one matrix for all heads), head_width, gates (one map or vector each).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hotplate.kernels.linear import linear


@dataclass(frozen=True)
class Axes:
    """Meaning of a parameter's axes.

    `blocks` are the row counts of what is stacked along axis 0, and `stacked` the axis name of each. A parameter maps
    axis `reads` (summed over; None for vectors) to axis `writes`. `powers` gives, per block (or for the whole), an axis
    and a power: the function stays the same when that axis is copied n times if the values are scaled by n ** power.
    """

    names: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    stacked: tuple[str, ...] = ()
    reads: int | None = None
    writes: int = 0
    powers: tuple[tuple[str, float] | None, ...] = ()

    @property
    def matrix(self) -> bool:
        """A map between two axes of features, or several stacked; a stack of vectors (one per gate) is none."""
        return self.reads is not None

    @property
    def hidden_matrix(self) -> bool:
        """A matrix between hidden features, where orthogonalised updates (Muon) apply."""
        return self.matrix and not {"vocab", "position"} & set(self.names)


def saves_a_pass(x: Tensor) -> bool:
    """Whether what follows a projection of x makes the gradient of its bias: where Triton's forms do."""
    return x.is_cuda


class Linear(nn.Linear):
    """A projection that knows its axes: weight [sum(blocks), inputs], one block per stacked matrix."""

    def __init__(
        self,
        input_axis: str,
        inputs: int,
        output_axes: str | Sequence[str],
        blocks: tuple[int, ...],
        bias: bool,
        powers: tuple[tuple[str, float] | None, ...] = (),
    ) -> None:
        """`output_axes`: one name per block, or one for all."""
        super().__init__(inputs, sum(blocks), bias=bias)
        stacked = (output_axes,) * len(blocks) if isinstance(output_axes, str) else tuple(output_axes)
        self.axes = {
            "weight": Axes((stacked[0], input_axis), blocks, stacked, reads=1, powers=powers),
            "bias": Axes(stacked[:1], blocks, stacked, powers=powers),
        }

    def reset_parameters(self) -> None:
        """No values: `initialise` or a checkpoint fills them."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., sum(blocks)]."""
        return linear(x, self.weight, self.bias)

    def before(self, x: Tensor, *shape: int) -> tuple[Tensor, Tensor | None]:
        """The same, [..., *shape], and the bias [*shape] if what comes next makes its gradient (kernels/bias.py)."""
        left = self.bias is not None and saves_a_pass(x)
        y = linear(x, self.weight, self.bias.detach()) if left else self(x)
        bias = self.bias if left else None
        if not shape:
            return y, bias
        return y.unflatten(-1, shape), None if bias is None else bias.view(shape)


class Embedding(nn.Embedding):
    """A look-up table that knows its axes: a map from one-hot rows to features."""

    def __init__(self, rows_axis: str, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.axes = {"weight": Axes((rows_axis, "residual"), reads=0, writes=1)}

    def reset_parameters(self) -> None:
        """No values, as above."""


def parameter_axes(model: nn.Module) -> dict[str, tuple[Tensor, Axes]]:
    """Every parameter of `model` by name with its axes; shared parameters once. ValueError for one undeclared."""
    found: dict[str, tuple[Tensor, Axes]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            declared = getattr(module, "axes", {}).get(name)
            if declared is None:
                raise ValueError(f"parameter_axes: {full} of {type(module).__name__} declares no axes")
            if not any(parameter is known for known, _ in found.values()):
                found[full] = (parameter, declared)
    return found
