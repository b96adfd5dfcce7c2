"""Which axis of each parameter means what: the one declaration behind parameter groups, costs and growth.

Axis names: vocab, position, residual, heads (heads * head_width, or kv), ffn, head_in, head_out, state.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Axes:
    """Meaning of a parameter's axes; `blocks` are the row counts of the matrices stacked along axis 0."""

    names: tuple[str, ...]
    blocks: tuple[int, ...] = ()

    @property
    def hidden_matrix(self) -> bool:
        """A matrix between hidden features, where orthogonalised updates (Muon) apply."""
        return len(self.names) >= 2 and not {"vocab", "position"} & set(self.names)


class Linear(nn.Linear):
    """A projection that knows its axes: weight [sum(blocks), inputs], one block per stacked matrix."""

    def __init__(self, input_axis: str, inputs: int, output_axis: str, blocks: tuple[int, ...], bias: bool) -> None:
        super().__init__(inputs, sum(blocks), bias=bias)
        self.axes = {"weight": Axes((output_axis, input_axis), blocks), "bias": Axes((output_axis,), blocks)}


class Embedding(nn.Embedding):
    """A look-up table that knows its axes."""

    def __init__(self, rows_axis: str, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.axes = {"weight": Axes((rows_axis, "residual"))}


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
