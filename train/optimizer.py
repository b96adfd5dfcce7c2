"""AdamW and Muon over one model: parameter groups from the declared axes, fp32 master weights where the model is
narrower, and an update that clips, scales and skips non-finite gradients on the device, without a host sync.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.model.axes import Axes, parameter_axes
from hotplate.model.lm import LanguageModel
from hotplate.model.mup import rate_scale
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError

# An orthogonal M x N matrix times this has the root mean square of an AdamW update, so both share one learning rate
# and weight decay (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
MUON_RMS = 0.2


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
        self._adamw = self._build_adamw([name for name in self._parameters if name not in muon])

    def _build_adamw(self, names: list[str]) -> torch.optim.AdamW:
        """Groups with weight decay (matrices) and without (biases, norms), by factor of the learning rate. What decays
        per update, rate times weight decay, has no factor."""
        config = self.config
        groups: dict[tuple[bool, float], list[Tensor]] = defaultdict(list)
        for name in names:
            groups[self._parameters[name][1].matrix, self._rates[name]].append(self._masters[name])
        return torch.optim.AdamW(
            [
                {"params": group, "factor": factor, "weight_decay": config.weight_decay / factor if matrix else 0.0}
                for (matrix, factor), group in groups.items()
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

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
    def step(self, lr: float, scale: Tensor) -> tuple[Tensor, Tensor]:
        """One update from gradients times `scale` (fp32 []), clipped to the configured norm.

        Returns (gradient norm before clipping, 1.0 if the update was skipped), both fp32 [] on the device. A
        non-finite norm leaves weights and state untouched, bit for bit.
        """
        gradients = [master.grad for master in self._masters.values() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        if self.config.clip > 0:
            scale = scale * (self.config.clip / norm).clamp(max=1.0)
        skipped = (~norm.isfinite()).float()
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["factor"]
        self._adamw.grad_scale, self._adamw.found_inf = 1.0 / scale, skipped  # type: ignore[attr-defined]
        self._adamw.step()
        self._step_muon(lr, scale, skipped)
        for name in self._narrow:
            self._parameters[name][0].copy_(self._masters[name])
        for master in self._masters.values():
            master.grad = None
        return norm, skipped

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
        for name, master in self._masters.items():
            for kind, value in self._adamw.state.get(master, {}).items():
                state[f"{kind}.{name}"] = value
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
        for group in self._adamw.param_groups:
            for master in group["params"]:
                name = next(n for n, m in self._masters.items() if m is master)
                if f"step.{name}" not in remaining:
                    continue  # saved before its first update
                self._adamw.state[master] = {
                    "step": _take(remaining, f"step.{name}", torch.zeros(())).to(master.device),
                    "exp_avg": _take(remaining, f"exp_avg.{name}", master).to(master.device),
                    "exp_avg_sq": _take(remaining, f"exp_avg_sq.{name}", master).to(master.device),
                }
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
