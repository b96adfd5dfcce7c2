"""AdamW and Muon over one model: parameter groups from the declared axes, fp32 master weights where the model is
narrower, and an update that clips, scales and skips non-finite gradients on the device, without a host sync.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from hotplate.kernels.adamw import adamw
from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.model.axes import Axes, parameter_axes
from hotplate.model.lm import LanguageModel
from hotplate.model.mup import rate_scale
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError

# An orthogonal M x N matrix times this has the root mean square of an AdamW update, so both share one learning rate
# and weight decay (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
MUON_RMS = 0.2
KINDS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of a parameter, by its names in a checkpoint


class Optimizer:
    """Owns the fp32 weights that are updated (the model's own when it is fp32) and their state."""

    def __init__(self, model: LanguageModel, config: OptimizerConfig) -> None:
        self.config = config
        self._parameters = {name: (p, axes) for name, (p, axes) in parameter_axes(model).items()}
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for name, (p, _) in self._parameters.items()
        }
        self._narrow = [name for name, (p, _) in self._parameters.items() if p.dtype != torch.float32]
        muon = {name for name, (_, axes) in self._parameters.items() if config.kind == "muon" and axes.hidden_matrix}
        self._rates = {  # factors of the learning rate: 1 in the standard parametrisation
            name: rate_scale(axes, model.config.width_multiplier, name in muon)
            for name, (_, axes) in self._parameters.items()
        }
        self._muon = {name: torch.zeros_like(self._masters[name]) for name in muon}
        self._moments = {
            name: (torch.zeros_like(master), torch.zeros_like(master), torch.zeros((), device=master.device))
            for name, master in self._masters.items()
            if name not in muon
        }

    @property
    def narrow(self) -> bool:
        """Whether any weight is narrower than its fp32 master."""
        return bool(self._narrow)

    def gather(self) -> None:
        """Add the gradients of narrow weights into the fp32 masters and clear them: after each micro-batch."""
        for name in self._narrow:
            parameter, master = self._parameters[name][0], self._masters[name]
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, scale: Tensor, veto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One update from gradients times `scale` (fp32 []), clipped to the configured norm.

        Returns (gradient norm before clipping, 1.0 if the update was skipped), both fp32 [] on the device. A
        non-finite norm, or a true `veto` (bool []), leaves weights and state untouched, bit for bit.
        """
        gradients = [master.grad for master in self._masters.values() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        if self.config.clip > 0:
            scale = scale * (self.config.clip / norm).clamp(max=1.0)
        skipped = (~norm.isfinite() if veto is None else ~norm.isfinite() | veto).float()
        self._step_adamw(lr, scale, skipped)
        self._step_muon(lr, scale, skipped)
        for name in self._muon:
            if name in self._narrow:
                self._parameters[name][0].copy_(self._masters[name])
        for master in self._masters.values():
            master.grad = None
        return norm, skipped

    def _step_adamw(self, lr: float, scale: Tensor, skipped: Tensor) -> None:
        """One call per kind of parameter: matrices, which weight decay acts on, and vectors, by factor of the learning
        rate (what decays per update has no factor); narrow weights are written in the same pass as their masters."""
        config = self.config
        groups: dict[tuple[bool, bool, float], list[str]] = defaultdict(list)
        for name in self._moments:
            if self._masters[name].grad is not None:
                groups[self._parameters[name][1].matrix, name in self._narrow, self._rates[name]].append(name)
        for (matrices, narrow, rate), names in groups.items():
            gradients = [g.contiguous() for name in names if (g := self._masters[name].grad) is not None]
            first, second, steps = ([self._moments[name][n] for name in names] for n in range(3))
            adamw(
                [self._masters[name] for name in names],
                gradients,
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

    def _step_muon(self, lr: float, scale: Tensor, skipped: Tensor) -> None:
        """Nesterov momentum, orthogonalised per stacked matrix, equal shapes in one batch."""
        batches: dict[tuple[tuple[int, ...], float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, momentum in self._muon.items():
            master, axes = self._masters[name], self._parameters[name][1]
            if master.grad is None:
                continue
            gradient = torch.where(skipped > 0, 0.0, master.grad * scale)
            decay = torch.where(skipped > 0, 1.0, self.config.momentum)
            momentum.mul_(decay).add_(gradient)
            direction = gradient + self.config.momentum * momentum
            for weight, part in zip(_matrices(master, axes), _matrices(direction, axes), strict=True):
                batches[tuple(part.shape), self._rates[name]].append((weight, part))
        for (shape, rate), pairs in batches.items():
            updates = newton_schulz(torch.stack([part for _, part in pairs]))
            factor = rate * MUON_RMS * math.sqrt(max(shape[-2:]))
            live = 1.0 - skipped
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight.mul_(1.0 - live * lr * self.config.weight_decay).sub_(update * (live * lr * factor))

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors by `kind.parameter`, for a checkpoint."""
        state = {f"momentum.{name}": momentum for name, momentum in self._muon.items()}
        for name, moments in self._moments.items():
            state |= {f"{kind}.{name}": value for kind, value in zip(KINDS, moments, strict=True)}
        for name in self._narrow:
            state[f"master.{name}"] = self._masters[name].detach()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. InputError when the tensors do not belong to this model and optimiser."""
        remaining = dict(state)
        for name, momentum in self._muon.items():
            momentum.copy_(_take(remaining, f"momentum.{name}", momentum))
        for name in self._narrow:
            self._masters[name].copy_(_take(remaining, f"master.{name}", self._masters[name]))
        for name, moments in self._moments.items():
            if f"step.{name}" not in remaining:
                continue  # saved before its first update
            for kind, value in zip(KINDS, moments, strict=True):
                value.copy_(_take(remaining, f"{kind}.{name}", value))
        if remaining:
            raise InputError(
                f"optimizer state: no parameter for {sorted(remaining)[:3]}; the checkpoint is of another model"
            )


def _take(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state or state[name].shape != like.shape:
        found = tuple(state[name].shape) if name in state else "nothing"
        raise InputError(f"optimizer state: want {name} of shape {tuple(like.shape)}, got {found}")
    return state.pop(name).clone()


def _matrices(tensor: Tensor, axes: Axes) -> list[Tensor]:
    """Views of the separate matrices in a parameter: stacked blocks of a projection, or one per gate and head."""
    if tensor.dim() > 2:
        return list(tensor.flatten(0, -3).unbind(0))
    return list(tensor.split(axes.blocks)) if axes.blocks else [tensor]
