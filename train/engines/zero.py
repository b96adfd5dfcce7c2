"""DeepSpeed's ZeRO: optimiser state, gradients and weights in shares, by its own engine and torch's AdamW.

Loss, data order and checkpoints are those of the other engines. DeepSpeed reads the gradient norm on the host, once
per update. Refused, because DeepSpeed cannot do it as the other engines do: Muon, growth within a run, skipping spikes.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hotplate.model.axes import Axes, parameter_axes
from hotplate.model.block import Block
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.model.mup import rate_scale
from hotplate.train.checkpoint import elements, shape_of
from hotplate.train.config import OptimizerConfig, TrainConfig
from hotplate.train.engines.base import empty_model, weights_type
from hotplate.train.errors import InputError
from hotplate.train.plan import lay_out
from hotplate.train.ranks import Ranks
from hotplate.train.saving import shared_out
from hotplate.train.step import Precision
from hotplate.train.tensor_files import Piece
from hotplate.train.untrusted import parse_json

KINDS = ("exp_avg", "exp_avg_sq")
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OURS = (*BATCH, "gradient_clipping", "optimizer", "scheduler", "fp16", "bf16")


class Zero:
    """A model under DeepSpeed's engine."""

    def __init__(self, model: ModelConfig, config: TrainConfig, ranks: Ranks, precision: Precision) -> None:
        """InputError where the package is missing, or the config asks for what DeepSpeed cannot do."""
        check(config)
        deepspeed = probed()
        self._config, self._ranks, self._precision = model, ranks, precision
        self._safe: Any = deepspeed.utils
        self._gathered: Callable[..., Any] = deepspeed.zero.GatheredParameters
        self._model = LanguageModel.build(model, config.seed, ranks.device, weights_type(precision))
        found = parameter_axes(self._model)
        self._parameters = {name: p for name, (p, _) in found.items()}
        self._shapes = {name: p.shape for name, p in self._parameters.items()}  # stage 3 leaves parameters empty
        groups = _groups(found, model, config.optimizer)
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        adam = torch.optim.AdamW(groups, betas=betas, eps=config.optimizer.eps)
        if config.engine.zero == 3:
            deepspeed.utils.set_z3_leaf_modules(self._model, [Block])  # gathered whole: blocks use parts by attribute
            for name, parameter in self._parameters.items():
                if not name.startswith("blocks."):
                    deepspeed.zero.register_external_parameter(self._model, parameter)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it also where one process runs without torchrun
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=self._model, optimizer=adam, config=settings(config, ranks, precision), dist_init_required=False
        )
        self._adam = adam
        self._materialise()
        self.optimizer = ZeroUpdates(self._engine, self._zero, adam, config.optimizer)
        self.module: nn.Module = self._engine

    def _materialise(self) -> None:
        """Moments from the start, where AdamW makes them at its first update: so that they can be saved and loaded."""
        held = [flat for group in self._adam.param_groups for flat in group["params"]]
        for flat in getattr(self._zero, "fp32_partitioned_groups_flat", held):  # stage 3 keeps them apart
            moments = {kind: torch.zeros_like(flat, requires_grad=False) for kind in KINDS}
            self._adam.state[flat] = {"step": torch.tensor(0.0), **moments}
        if hasattr(self._zero, "_lazy_init_hp_params_optimizer_state"):
            self._zero._lazy_init_hp_params_optimizer_state()

    @contextlib.contextmanager
    def exchange(self, last: bool) -> Iterator[Callable[[Tensor], None]]:
        def backward(loss: Tensor) -> None:
            self._engine.backward(loss, scale_wrt_gas=False)
            if not last:
                self._engine.step()  # counts the micro-batch

        yield backward

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole fp32 weights, one at a time, on every rank."""
        for name, parameter in self._parameters.items():
            yield name, self._safe.safe_get_full_fp32_param(parameter).view(self._shapes[name])

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        steps = next(iter(self._adam.state.values()))["step"]
        for name, parameter in self._parameters.items():
            for kind in KINDS:
                value = self._safe.safe_get_full_optimizer_state(parameter, kind)
                yield f"{kind}.{name}", value.view(self._shapes[name])
            yield f"step.{name}", steps.detach().clone().float()

    def pieces(self) -> dict[str, dict[str, Piece]]:
        shapes = {name: torch.empty(shape, device="meta") for name, shape in self._shapes.items()}
        numbers = {f"step.{name}": torch.empty((), device="meta") for name in shapes}
        moments = {f"{kind}.{name}": x for name, x in shapes.items() for kind in KINDS}
        found = {}
        for part, sizes, whole in (
            ("model", shapes, self._weights()),
            ("optimizer", {**moments, **numbers}, self._state()),
        ):
            mine = shared_out(sizes, self._ranks)
            found[part] = {name: Piece.whole(x.cpu()) for name, x in whole if name in mine}
        return found

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, partly: bool = False) -> None:
        shapes = self._shapes
        if wrong := set(weights) ^ set(shapes):
            raise InputError(f"weights: {sorted(wrong)[:3]} are in the model or the checkpoint, not in both")
        known = {f"{kind}.{name}" for kind in (*KINDS, "step", "master") for name in shapes}
        if wrong := set(state) - known:
            raise InputError(f"optimizer state: no place for {sorted(wrong)[:3]} under --engine deepspeed")
        device = self._ranks.device
        for name, parameter in self._parameters.items():
            value = _whole(weights, name, shapes[name]).to(device)
            with self._gathered([parameter], modifier_rank=0):
                parameter.copy_(value)
            self._safe.safe_set_full_fp32_param(parameter, value.float())
            for kind in KINDS:
                if f"{kind}.{name}" in state:
                    moment = _whole(state, f"{kind}.{name}", shapes[name]).to(device)
                    self._safe.safe_set_full_optimizer_state(parameter, moment, kind)
        steps = [float(state[key]) for key in state if key.startswith("step.")]
        for slots in self._adam.state.values():
            slots["step"].fill_(max(steps, default=0.0))

    @torch.no_grad()
    def whole(self) -> LanguageModel | None:
        found = None
        if self._ranks.main:
            dtype = weights_type(self._precision)
            found = empty_model(self._config).to(dtype).to_empty(device=self._ranks.device)
        places = {} if found is None else {name: p for name, (p, _) in parameter_axes(found).items()}
        for name, value in self._weights():
            if found is not None:
                places[name].copy_(value)
        return found

    def everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return dict(self._weights()), dict(self._state())


class ZeroUpdates:
    """DeepSpeed's step in the form that the trainer asks for."""

    def __init__(self, engine: Any, zero: Any, adam: torch.optim.AdamW, config: OptimizerConfig) -> None:
        self._engine, self._zero, self._adam, self._config = engine, zero, adam, config

    def gather(self, last: bool) -> None:
        """DeepSpeed keeps gradients itself."""

    def step(self, lr: float, scale: Tensor, veto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Optimizer.step`; whether gradients are finite is DeepSpeed's verdict, so that a veto of a loss that is
        not finite needs no further one. `scale` goes the way of a loss scale: its inverse divides the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = lr * group["rate"]
        self._zero.override_loss_scale(1.0 / float(scale))
        self._engine.step()
        self._zero.override_loss_scale(1.0)
        norm = torch.as_tensor(self._zero._global_grad_norm, dtype=torch.float32, device=scale.device).reshape(())
        skipped = torch.full((), float(self._zero.overflow), device=scale.device)
        return norm, skipped


def check(config: TrainConfig) -> None:
    """InputError for what is not done under DeepSpeed."""
    instead = "use --engine fsdp or ddp"
    if config.optimizer.kind != "adamw":
        raise InputError(f"--engine deepspeed: excludes --optimizer.kind {config.optimizer.kind}; {instead}")
    if config.optimizer.impl != "auto":
        raise InputError(f"--engine deepspeed: its AdamW is torch's; leave out --optimizer.impl, or {instead}")
    if config.growth.at:
        raise InputError(f"--engine deepspeed: excludes growth within a run; grow between runs, or {instead}")
    if config.guard.spike == "skip":
        raise InputError(f"--engine deepspeed: excludes --guard.spike skip; use warn, or {instead}")


def probed() -> Any:
    """The package. InputError when it is missing or does not load."""
    try:
        import deepspeed
        import deepspeed.ops
        import deepspeed.utils
    except ImportError as error:
        raise InputError(
            f"--engine deepspeed: the package does not load ({error}); pip install 'hotplate[deepspeed]'"
        ) from error
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # On a CPU it would compile this for a minute: an exchange that only its inference calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def settings(config: TrainConfig, ranks: Ranks, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's config: the run's, then the entries of `engine.deepspeed`. InputError when these change the run."""
    layout = lay_out(config, ranks)
    table: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_rows,
        "gradient_accumulation_steps": layout.micro_batches,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": {"stage": config.engine.zero},
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    if config.engine.deepspeed is None:
        return table
    path = Path(config.engine.deepspeed)
    try:
        more = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--engine.deepspeed {path}: cannot be read: {error}") from error
    if not isinstance(more, dict):
        raise InputError(f"--engine.deepspeed {path}: want a JSON object, got {type(more).__name__}")
    if wrong := sorted(set(more) & set(OURS)):
        raise InputError(f"--engine.deepspeed {path}: {wrong} follow from hotplate's flags; leave them out")
    if not isinstance(stages := more.get("zero_optimization", {}), dict):
        raise InputError(f"--engine.deepspeed {path}: zero_optimization: want an object, got {str(stages)[:40]}")
    if stages.get("stage", config.engine.zero) != config.engine.zero:
        raise InputError(f"--engine.deepspeed {path}: the stage is --engine.zero; leave it out")
    return _over(table, more)


def _over(table: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in more.items():
        deep = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if deep else value
    return merged


def _groups(
    found: Mapping[str, tuple[Tensor, Axes]], model: ModelConfig, config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Parameters by factor of the learning rate, and matrices, which decay, apart from vectors."""
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for parameter, axes in found.values():
        rate = rate_scale(axes, model.width_multiplier, orthogonal=False)
        groups.setdefault((axes.matrix, rate), []).append(parameter)
    return [
        {"params": held, "rate": rate, "weight_decay": config.weight_decay / rate if matrix else 0.0}
        for (matrix, rate), held in groups.items()
    ]


def _whole(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    found = shape_of(tensors, name)
    if found != tuple(shape):
        raise InputError(f"checkpoint: want {name} of shape {tuple(shape)}, got {found or 'nothing'}")
    return elements(tensors, name, 0, shape.numel()).view(shape)
