"""Every Triton kernel that the recurrent rooms launch, with the constants and types that they launch it with."""

import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hotplate.kernels.compiled import ARCHS, Compiled, compile_kernel

# Pointers in the dtype of the gates, by module; other pointers are fp32.
IO = {
    "qlstm.streaming": ("gates", "h", "dh", "dgates"),
    "lstm_diagonal.streaming": ("gates", "h_out", "dh", "dgates"),
    "lstm.parallel": ("gates", "recurrent", "h", "h0", "pre", "dgates"),
    "lstm.resident": ("gates", "recurrent", "h", "pre", "dh", "dgates"),
    "lstm_dense.steps": ("gates", "h", "dh_out", "dgates", "operand"),
    "lstm_dense.persistent": ("gates", "recurrent", "h", "exchange"),
    "lstm_dense.persistent_backward": ("gates", "recurrent", "dh", "dgates"),
}
TYPES = {"offset": "fp32", "flags": "*i32", "resets": "*u8"} | dict.fromkeys("TBHRKDS", "i32")
UNALIGNED = ("T", "B", "H", "R", "S", "offset", "keep", "keep_stride")  # no multiples of 16, or not known to be
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}  # what one program may take


@dataclass(frozen=True)
class Shipped:
    module: str  # below hotplate.kernels
    kernel: str
    label: str  # what sets it apart from the kernel's other configurations
    dtype: str
    arch: int
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def room(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module}.{self.kernel} {self.label} {self.dtype} sm{self.arch}"


@functools.cache
def compiled(shipped: Shipped) -> Compiled:
    kernel = getattr(importlib.import_module(f"hotplate.kernels.{shipped.module}"), shipped.kernel)
    constants = {name: value for name, value in shipped.constants if name in kernel.arg_names}

    def type_of(name: str) -> str:
        if name in TYPES or name.endswith(("_stride", "_row", "_step", "_head")):
            return TYPES.get(name, "i32")
        return f"*{shipped.dtype if name in IO[shipped.module] else 'fp32'}"

    signature = {name: type_of(name) for name in kernel.arg_names if name not in constants}
    aligned = [name for name in signature if name not in UNALIGNED]
    return compile_kernel(
        kernel,
        signature,
        constants,
        shipped.arch,
        num_warps=shipped.num_warps,
        divisible_by_16=aligned,
        **dict(shipped.options),
    )


def _streaming() -> Iterator[tuple[Any, ...]]:
    """(module, kernel, label, dtype, constants, warps)"""
    for room in ("qlstm", "lstm_diagonal"):
        module = importlib.import_module(f"hotplate.kernels.{room}.streaming")
        base = {"K": module.SPAN, "BD": module.COLUMNS_PER_WARP * module.NUM_WARPS, "FAST": True, "N": 4}
        cases: list[tuple[str, str, str, Mapping[str, Any]]] = [
            (kernel, "one pass", dtype, {"product": None, **({"parts": None} if room == "qlstm" else {})})
            for kernel in ("forward_kernel", "backward_kernel")
            for dtype in ("bf16", "fp32")
        ]
        if room == "qlstm":
            absent = {"forward_kernel": ("c0", "h", "checkpoints"), "backward_kernel": ("dc_last", "dgates", "parts")}
            cases += [(kernel, "coupled", "bf16", {"product": None, "N": 3, "parts": None}) for kernel in absent]
            cases += [("backward_kernel", "bias", dtype, {"product": None}) for dtype in ("bf16", "fp32")]
            cases += [(kernel, "first pass", "bf16", dict.fromkeys(names)) for kernel, names in absent.items()]
        for kernel, label, dtype, changed in cases:
            constants = {**base, "HALF": dtype != "fp32", **changed}
            yield f"{room}.streaming", kernel, label, dtype, constants, module.NUM_WARPS


def _resident(arch: int) -> Iterator[tuple[Any, ...]]:
    resident, parallel = (importlib.import_module(f"hotplate.kernels.lstm.{name}") for name in ("resident", "parallel"))
    base = {"BB": resident.ROWS, "STAGES": resident.STAGES, "FAST": True, "EVEN": True, "UPCAST": False}
    base["BD"] = resident.COLUMNS
    for width, dtype in ((32, "bf16"), (64, "bf16"), (64, "fp32"), (128, "bf16")):
        if arch == 80 and width == 128:
            continue  # its matrices do not fit; op.py does not launch it there
        constants = {**base, "W": width, "HALF": dtype != "fp32", "BM": parallel.PAIRS[DTYPES[dtype]]}
        for kernel in ("forward_kernel", "backward_kernel"):
            yield "lstm.resident", kernel, f"K{width}", dtype, constants, resident.warps(width)
        yield "lstm.parallel", "preactivations_kernel", f"K{width}", dtype, constants, parallel.PAIR_WARPS
        same = {**constants, "STAGES": parallel.STAGES[DTYPES[dtype]], "SHARED": False}
        yield "lstm.parallel", "gradient_kernel", f"K{width}", dtype, same, parallel.warps(width)
    yield "lstm.resident", "cells_kernel", "", "bf16", base, 1


def _steps() -> Iterator[tuple[Any, ...]]:
    steps = importlib.import_module("hotplate.kernels.lstm_dense.steps")
    for dtype in ("bf16", "fp32"):
        for kernel in ("forward_step", "backward_step"):
            yield "lstm_dense.steps", kernel, "", dtype, {"BD": steps.COLUMNS, "FAST": True}, steps.WARPS


def _persistent() -> Iterator[tuple[Any, ...]]:
    forward, back, exchange = (
        importlib.import_module(f"hotplate.kernels.lstm_dense.{name}")
        for name in ("persistent", "persistent_backward", "exchange")
    )
    base = {"DS": exchange.SLICE, "BB": exchange.ROWS, "FLAGS": exchange.FLAGS, "FAST": True, "UPCAST": False}
    for D in forward.WIDTHS:
        sizes = {**base, "D": D, "G": D // exchange.SLICE}
        for module, constants in (
            (forward, {**sizes, "PIECE": forward.piece(D)}),
            (back, {**sizes, "PIECE": back.piece(D), "S": back.PARTS}),
        ):
            kernel = "forward_kernel" if module is forward else "backward_kernel"
            yield module.__name__.removeprefix("hotplate.kernels."), kernel, f"D{D}", "bf16", constants, exchange.WARPS
    constants = {"BD": back.COLUMNS, "FAST": True}
    yield "lstm_dense.persistent_backward", "coefficients_kernel", "", "bf16", constants, 4


def everything() -> list[Shipped]:
    """Of every architecture; the persistent kernels only of compute capability 9, where alone they are launched."""
    found = []
    for arch in ARCHS:
        rows = [*_streaming(), *_resident(arch), *_steps(), *(_persistent() if arch == 90 else ())]
        for module, kernel, label, dtype, constants, warps in rows:
            options: dict[str, Any] = {}
            if "persistent" in module and kernel != "coefficients_kernel":
                options["launch_cooperative_grid"] = True
            if (module, kernel) == ("qlstm.streaming", "backward_kernel"):
                options |= importlib.import_module("hotplate.kernels.qlstm.streaming").BACKWARD
            if kernel == "gradient_kernel":
                options |= importlib.import_module("hotplate.kernels.lstm.parallel").limits(constants["W"])
            frozen = tuple(sorted(constants.items())), warps, tuple(options.items())
            found.append(Shipped(module, kernel, label, dtype, arch, *frozen))
    return found
