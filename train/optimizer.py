"""AdamW and Muon over one model: parameter groups from the declared axes, fp32 master weights where the model is
narrower, and an update that clips, scales and skips non-finite gradients on the device, without a host sync.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from hotplate.kernels.adamw import adamw
from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.model.axes import Axes, parameter_axes
from hotplate.model.lm import LanguageModel
from hotplate.model.mup import rate_scale
from hotplate.train.checkpoint import elements, shape_of
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError
from hotplate.train.shares import Shares
from hotplate.train.tensor_files import Piece

# An orthogonal M x N matrix times this has the root mean square of an AdamW update, so both share one learning rate
# and weight decay (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
MUON_RMS = 0.2
GATHERED_BYTES = 1 << 28  # fp32 gradients made at a time from narrow ones, which live until then
KINDS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of a parameter, by its names in a checkpoint


class Optimizer:
    """Owns the fp32 weights that are updated (the model's own when it is fp32) and their state, of the elements that
    this rank holds of every parameter."""

    def __init__(self, model: LanguageModel, config: OptimizerConfig, shares: Shares | None = None) -> None:
        """`shares`: what ranks hold and do of the work; None = everything here."""
        self.config = config
        self.shares = Shares() if shares is None else shares
        self._parameters = {name: (p, axes) for name, (p, axes) in parameter_axes(model).items()}
        self._masters = {
            name: self.shares.local(p) if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for name, (p, _) in self._parameters.items()
        }
        self._narrow = [name for name, (p, _) in self._parameters.items() if p.dtype != torch.float32]
        muon = {name for name, (_, axes) in self._parameters.items() if config.kind == "muon" and axes.hidden_matrix}
        self._rates = {  # factors of the learning rate: 1 in the standard parametrisation
            name: rate_scale(axes, model.config.width_multiplier, name in muon)
            for name, (_, axes) in self._parameters.items()
        }
        self._muon = {name: torch.zeros_like(master) for name, master in self._masters.items() if name in muon}
        self._moments = {
            name: (
                torch.zeros_like(master),
                torch.zeros_like(master),
                torch.zeros((), device=master.device),
            )
            for name, master in self._masters.items()
            if name not in muon
        }

    def _gradient(self, name: str) -> Tensor | None:
        """Of the elements held here."""
        gathered = self._masters[name].grad if name in self._narrow else None
        return self.shares.gradient(self._parameters[name][0]) if gathered is None else gathered

    def gradients(self) -> dict[str, Tensor]:
        """Of all that have one, by parameter: the elements held here. In fp32, but for a narrow weight's only one of an
        update.
        """
        return {name: g for name in self._masters if (g := self._gradient(name)) is not None}

    def forget(self) -> None:
        """Clear all gradients."""
        for name, (parameter, _) in self._parameters.items():
            parameter.grad = self._masters[name].grad = None

    @property
    def narrow(self) -> bool:
        """Whether any weight is narrower than its fp32 master."""
        return bool(self._narrow)

    def gather(self, last: bool) -> None:
        """After each micro-batch: add the gradients of narrow weights into the fp32 masters' and clear them. What an
        update's last micro-batch brings alone stays where it is, as there is nothing to add."""
        held = [name for name in self._narrow if self._parameters[name][0].grad is not None]
        held = [name for name in held if not last or self._masters[name].grad is not None]
        sizes = accumulate(self._masters[name].nbytes for name in held)
        for _, group in groupby(zip(held, sizes, strict=True), key=lambda pair: pair[1] // GATHERED_BYTES):
            self._gather([name for name, _ in group])

    def _gather(self, names: Sequence[str]) -> None:
        """On a GPU as few launches as there are kinds: first gradients, further ones."""
        first: tuple[list[Tensor], list[Tensor]] = [], []  # where to, and what arrived
        further: tuple[list[Tensor], list[Tensor]] = [], []
        for name in names:
            parameter, master = self._parameters[name][0], self._masters[name]
            assert parameter.grad is not None
            into, arrived = first if master.grad is None else further
            if master.grad is None:
                master.grad = torch.empty_like(parameter.grad, dtype=master.dtype)
            into.append(master.grad)
            arrived.append(parameter.grad)
            parameter.grad = None
        if first[0]:
            torch._foreach_copy_(*first)
        if further[0]:
            torch._foreach_add_(*further)

    @torch.no_grad()
    def step(self, lr: float, scale: Tensor, veto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One update from gradients times `scale` (fp32 []), clipped to the configured norm.

        Returns (gradient norm before clipping, 1.0 if the update was skipped), both fp32 [] on the device. A
        non-finite norm, or a true `veto` (bool []), leaves weights and state untouched, bit for bit.
        """
        gradients = self.gradients()
        norm = self.shares.norm(list(gradients.values()), scale.device) * scale
        if self.config.clip > 0:
            scale = scale * (self.config.clip / norm).clamp(max=1.0)
        skipped = (~norm.isfinite() if veto is None else ~norm.isfinite() | veto).float()
        self._step_adamw(gradients, lr, scale, skipped)
        self._step_muon(gradients, lr, scale, skipped)
        for name in self._muon:
            if name in self._narrow:
                self._parameters[name][0].copy_(self._masters[name])
        self.forget()
        return norm, skipped

    def _step_adamw(self, gradients: Mapping[str, Tensor], lr: float, scale: Tensor, skipped: Tensor) -> None:
        """One call per kind of parameter: matrices, which weight decay acts on, and vectors, by factor of the learning
        rate (what decays per update has no factor); narrow weights are written in the same pass as their masters."""
        config = self.config
        groups: dict[tuple[bool, bool, torch.dtype, float], list[str]] = defaultdict(list)
        for name in self._moments:
            if name in gradients and gradients[name].numel():
                matrix, dtype = self._parameters[name][1].matrix, gradients[name].dtype
                groups[matrix, name in self._narrow, dtype, self._rates[name]].append(name)
        for (matrices, narrow, _, rate), names in groups.items():
            first, second, steps = ([self._moments[name][n] for name in names] for n in range(3))
            adamw(
                [self._masters[name] for name in names],
                [gradients[name].contiguous() for name in names],
                first,
                second,
                steps,
                lr=lr * rate,
                scale=scale,
                skipped=skipped,
                copies=[self._parameters[name][0] for name in names] if narrow else None,
                betas=(config.beta1, config.beta2),
                eps=config.eps,
                weight_decay=config.weight_decay / rate if matrices else 0.0,
                impl=config.impl,
            )

    def _step_muon(self, gradients: Mapping[str, Tensor], lr: float, scale: Tensor, skipped: Tensor) -> None:
        """Nesterov momentum, orthogonalised per stacked matrix."""
        directions: dict[str, Tensor] = {}
        for name, momentum in self._muon.items():
            if name not in gradients:
                continue
            gradient = torch.where(skipped > 0, 0.0, gradients[name].float() * scale)
            decay = torch.where(skipped > 0, 1.0, self.config.momentum)
            momentum.mul_(decay).add_(gradient)
            directions[name] = gradient + self.config.momentum * momentum
        if not directions:
            return
        shapes = {name: tuple(self._parameters[name][0].shape) for name in directions}
        live = 1.0 - skipped
        for name, update in self.shares.apply(self._orthogonalised, directions, shapes).items():
            weight = self._masters[name].detach()
            weight.mul_(1.0 - live * lr * self.config.weight_decay).sub_(update * (live * lr))

    def _orthogonalised(self, directions: dict[str, Tensor]) -> dict[str, Tensor]:
        """Updates at a learning rate of one from whole parameters' directions; equal shapes in one batch."""
        updates = {name: torch.empty_like(x) for name, x in directions.items()}
        batches: dict[tuple[tuple[int, ...], float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, direction in directions.items():
            axes = self._parameters[name][1]
            for part, place in zip(_matrices(direction, axes), _matrices(updates[name], axes), strict=True):
                batches[tuple(part.shape), self._rates[name]].append((part, place))
        for (shape, rate), pairs in batches.items():
            stack = torch.stack([part for part, _ in pairs])
            found = newton_schulz(stack, impl=self.config.muon_impl) * (rate * MUON_RMS * math.sqrt(max(shape)))
            for (_, place), update in zip(pairs, found, strict=True):
                place.copy_(update)
        return updates

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors by `kind.parameter`, for a checkpoint."""
        state = {f"momentum.{name}": momentum for name, momentum in self._muon.items()}
        for name, moments in self._moments.items():
            state |= {f"{kind}.{name}": value for kind, value in zip(KINDS, moments, strict=True)}
        for name in self._narrow:
            state[f"master.{name}"] = self._masters[name].detach()
        return state

    def pieces(self) -> dict[str, Piece]:
        """The same as pieces of whole tensors."""
        found = {}
        for key, x in self.state_dict().items():
            kind, name = key.split(".", 1)
            parameter = self._parameters[name][0]
            counts = kind == "step"
            found[key] = Piece.whole(x) if counts else Piece(x, tuple(parameter.shape), self.shares.start(parameter))
        return found

    def weights(self) -> dict[str, Tensor]:
        """The fp32 weights held here, by parameter."""
        return {name: master.detach() for name, master in self._masters.items()}

    def weight_pieces(self) -> dict[str, Piece]:
        """The same as pieces of whole tensors."""
        return {
            name: Piece(x, tuple(parameter.shape), self.shares.start(parameter))
            for name, x in self.weights().items()
            for parameter in (self._parameters[name][0],)
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], *, partly: bool = False) -> None:
        """The inverse of `state_dict`, from whole tensors; `partly`: what is missing starts anew. Master weights come
        with the weights. InputError when the tensors do not belong to this model and optimiser."""
        remaining = {key for key in state if not key.startswith("master.")}
        for name, momentum in self._muon.items():
            if f"momentum.{name}" in state or not partly:
                self._take(state, remaining, "momentum", name, momentum)
        for name, moments in self._moments.items():
            if f"step.{name}" not in state:
                continue  # saved before its first update
            for kind, value in zip(KINDS, moments, strict=True):
                self._take(state, remaining, kind, name, value)
        if remaining:
            raise InputError(
                f"optimizer state: no parameter for {sorted(remaining)[:3]}; the checkpoint is of another model"
            )

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Parameters and master weights from whole tensors, by name. InputError when they are of another model."""
        if wrong := set(weights) ^ set(self._parameters):
            raise InputError(f"weights: {sorted(wrong)[:3]} are in the model or the checkpoint, not in both")
        for name in self._parameters:
            self.load_weight(name, weights)

    @torch.no_grad()
    def load_weight(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """One parameter and its master copy."""
        self._copy(weights, name, name, self._masters[name].detach())
        if name in self._narrow:
            self._parameters[name][0].copy_(self._masters[name])

    def _take(self, state: Mapping[str, Tensor], remaining: set[str], kind: str, name: str, out: Tensor) -> None:
        self._copy(state, f"{kind}.{name}", name if kind != "step" else None, out)
        remaining.discard(f"{kind}.{name}")

    def _copy(self, tensors: Mapping[str, Tensor], key: str, name: str | None, out: Tensor) -> None:
        """Into `out`, the elements of tensor `key` that are held here: of parameter `name`, or all of a number."""
        parameter = None if name is None else self._parameters[name][0]
        shape = () if parameter is None else tuple(parameter.shape)
        found = shape_of(tensors, key)
        if found != shape:
            raise InputError(f"checkpoint: want {key} of shape {shape}, got {found or 'nothing'}")
        start = 0 if parameter is None else self.shares.start(parameter)
        out.copy_(elements(tensors, key, start, start + out.numel()).view(out.shape))


def _matrices(tensor: Tensor, axes: Axes) -> list[Tensor]:
    """Views of the separate matrices in a parameter: stacked blocks of a projection, or one per gate and head."""
    if tensor.dim() > 2:
        return list(tensor.flatten(0, -3).unbind(0))
    return list(tensor.split(axes.blocks)) if axes.blocks else [tensor]
