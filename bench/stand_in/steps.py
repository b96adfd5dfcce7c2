"""A training step on the stand-in GPU, counted: what it launches, what that moves, and how much memory it holds.

Real widths, batches and precision of a GPU run, two layers: more layers repeat the second.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hotplate.bench.live import Live
from hotplate.bench.stand_in import device
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch

LAYERS = 2
TOKENS = 16384  # of a step
GPU = torch.device("cuda", 0)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "_addmm_activation")
# Of torch's operations that are no views, those that start nothing on the device.
NOTHING = ("_unsafe_view", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "set_")
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # operations made of others, all of them
WRITERS = ("copy_", "fill_", "zero_")  # do not read what they change
# How names begin of torch.compile's kernels, and of those of their operands that are read and written.
BY_COMPILER, IN_PLACE = "triton_", "in_out_ptr"


class Launches(TorchDispatchMode):
    """Counts what a GPU would start and the bytes of its operands, each once per launch; twice those that torch's
    operations or the compiler's kernels change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("triton", "torch")}
        self.products = self.compiled = self.moved = 0
        self.live = Live()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """torch.compile runs what it compiled without asking about this mode."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and func.has_kernel_for_dispatch_key(COMPOSITE):
            with self:  # a body's reshape or contiguous comes whole, and may copy
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        operands, made = (self._on_device(part) for part in ((args, kwargs), result))
        self.live.known(operands)
        self.live.made(made)
        name = func.overloadpacket.__name__
        works = made or (operands and func._schema.is_mutable)
        if func.namespace == "hotplate" or name in NOTHING or func.is_view or not works:
            return result  # a hotplate operator's launches are its body's, which has this mode again
        read = [] if name.startswith("new_") or name.endswith("_like") else operands
        self.moved += sum(x.nbytes for x in {id(x): x for x in read + made}.values())
        if name.endswith("_") and name not in WRITERS:
            self.moved += sum(x.nbytes for x in self._on_device(args[0]))
        if name.rstrip("_") in PRODUCTS:
            self.products += 1
        else:
            self.counts["torch"][name] += 1
        return result

    def launched(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Hears of a Triton launch. AdamW's operands lie behind a table of addresses: they are not among the bytes."""
        if name.startswith(BY_COMPILER):
            self.compiled += 1
        else:
            self.counts["triton"][name] += 1
        for operand, x in arguments.items():
            tensor = getattr(x, "base", x)  # a descriptor's
            if isinstance(tensor, Tensor):
                self.moved += tensor.nbytes * (2 if operand.startswith(IN_PLACE) else 1)

    @staticmethod
    def _on_device(values: Any) -> list[Tensor]:
        return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_cuda]

    def found(self) -> dict[str, Any]:
        return {
            "triton": dict(sorted(self.counts["triton"].items())),
            "torch": dict(sorted(self.counts["torch"].items())),
            "products": self.products,
            "compiled": self.compiled,
            "moved_bytes": self.moved,
            "peak_bytes": self.live.peak,
        }


def config_of(model: str) -> ModelConfig:
    """The preset, two layers of it."""
    return replace(PRESETS[model], layers=LAYERS)


def _on_gpu(model: nn.Module) -> nn.Module:
    """With parameters and buffers of its own on the stand-in: torch cannot move one there."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=GPU))
        for name, x in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device=GPU)
    return model


def step_of(config: ModelConfig, compiled: bool, B: int, T: int, *, carried: bool) -> Callable[[], None]:
    """An update in bf16 on B rows of T tokens, as the trainer makes it; with `carried`, recurrences go on with the
    state of the update before."""
    with torch.device("meta"):
        model = LanguageModel(config).to(torch.bfloat16)
    with FakeTensorMode() as mode:
        _on_gpu(model)
        model.execute(compiled=compiled)
        step = Step(model, Optimizer(model, OptimizerConfig()), Ranks(0, 1, GPU), "bf16", targets=B * T)
        batch = random_batch(config, B, T, GPU)
        batch = batch if carried else replace(batch, slots=None)
        states = [model.initial_state(B) if batch.slots is not None else None]

    def run() -> None:
        nonlocal states
        with mode:
            _, states = step([batch], states, lr=1e-3)

    return run


def measure(workloads: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Counts by workload, "MODEL eager" or "MODEL compiled". A step that waits for the device, or a kernel that does
    not compile or fit, raises."""
    counted: list[Launches] = []  # of the step that runs now, if it counts

    @contextmanager
    def inside() -> Iterator[None]:
        """A body's operations count, too; the mode has stepped aside for the operator."""
        with counted[0] if counted else nullcontext():
            yield

    found = {}
    for workload in workloads:
        model, how = workload.split()
        torch.compiler.reset()
        config = config_of(model)
        run = step_of(config, how == "compiled", TOKENS // config.context, config.context, carried=True)
        for _ in range(3):  # they fill what is kept, and compile
            device.real_bodies(inside)  # of operators that the step before has registered
            run()
        gc.collect()
        counted.append(seen := Launches())
        device.listeners.append(seen.launched)
        with seen:
            run()
        device.listeners.remove(seen.launched)
        counted.remove(seen)
        found[workload] = seen.found()
    return found
