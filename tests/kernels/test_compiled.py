"""Holds the machine code of the Triton kernels to recorded budgets, without a GPU.

budgets/<room>.json holds what each shipped configuration compiled to, by kernel, dtype, architecture and version of
Triton. Both sides are checked: a kernel that got better is recorded too. To record what the installed Triton makes:

    python tests/kernels/test_compiled.py
"""

import functools
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import triton

from hotplate.kernels.compiled import Compiled, compile_kernel

BUDGETS = Path(__file__).resolve().parent / "budgets"
ELEMENTS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SCALARS = {"T": "i32", "D": "i32", "offset": "fp32", "resets": "*u8"}
IN_DTYPE = ("gates", "h", "h_out", "dh", "dgates")  # arguments in the dtype of the gates; other pointers are fp32


@dataclass(frozen=True)
class Shipped:
    """One kernel as `room`'s streaming.py launches it."""

    room: str
    kernel: str
    dtype: torch.dtype
    arch: int
    mufu: int  # special-function instructions per element, at the most
    rows: int  # loaded per step
    absent: tuple[str, ...] = ()  # optional arguments left out

    def __str__(self) -> str:
        without = "".join(f"-no_{name}" for name in self.absent)
        return f"{self.room}-{self.kernel}-{ELEMENTS[self.dtype]}-sm{self.arch}{without}"


# The 16-bit forward of qlstm takes o and tanh(c) in one instruction each. Backward kernels replay: the compiler keeps
# the activations or computes them again, whichever costs fewer registers.
ONE_PASS = ("product",)
SHIPPED = [
    Shipped("qlstm", "forward_kernel", torch.bfloat16, 90, mufu=8, rows=4, absent=ONE_PASS),
    Shipped("qlstm", "backward_kernel", torch.bfloat16, 90, mufu=10, rows=5, absent=ONE_PASS),
    Shipped("qlstm", "forward_kernel", torch.float32, 80, mufu=10, rows=4, absent=ONE_PASS),
    Shipped("qlstm", "forward_kernel", torch.bfloat16, 100, mufu=8, rows=4, absent=ONE_PASS),
    Shipped("qlstm", "forward_kernel", torch.bfloat16, 90, mufu=6, rows=3, absent=("c0", "h", "checkpoints")),
    Shipped("qlstm", "backward_kernel", torch.bfloat16, 90, mufu=10, rows=5, absent=("dc_last", "dgates")),
    Shipped("lstm_diagonal", "forward_kernel", torch.bfloat16, 90, mufu=10, rows=4),
    Shipped("lstm_diagonal", "backward_kernel", torch.bfloat16, 90, mufu=10, rows=5),
]


@functools.cache
def compiled(shipped: Shipped) -> Compiled:
    module = importlib.import_module(f"hotplate.kernels.{shipped.room}.streaming")
    kernel, columns = getattr(module, shipped.kernel), module.COLUMNS_PER_WARP * module.NUM_WARPS
    element = ELEMENTS[shipped.dtype]
    constants = {"N": 4, "K": module.SPAN, "BD": columns, "FAST": True, "HALF": shipped.dtype != torch.float32}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    constants |= dict.fromkeys(shipped.absent)
    signature = {
        name: SCALARS.get(name, f"*{element}" if name in IN_DTYPE else "*fp32")
        for name in kernel.arg_names
        if name not in constants
    }
    return compile_kernel(
        kernel,
        signature,
        constants,
        shipped.arch,
        num_warps=module.NUM_WARPS,
        divisible_by_16=[name for name in signature if name not in ("T", "offset")],
    )


def loads(code: Compiled) -> dict[str, int]:
    return {op: n for op, n in sorted(code.opcodes.items()) if op.split(".")[0] == "LDG"}


def record(code: Compiled) -> dict[str, object]:
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "shared_bytes": code.shared_bytes,
        "instructions": code.instructions,
        "loop_instructions": sum(code.innermost.values()),
        "loop_mufu": code.count("MUFU", innermost=True),
        "barriers": code.count("BAR"),
        "loads": loads(code),
    }


def budget_file(shipped: Shipped) -> Path:
    return BUDGETS / f"{shipped.room}.json"


def rebaseline() -> None:
    """Writes what the installed Triton makes of every shipped configuration next to what other versions made."""
    for shipped in SHIPPED:
        path = budget_file(shipped)
        body = json.loads(path.read_text()) if path.exists() else {}
        body.setdefault(str(shipped), {})[triton.__version__] = record(compiled(shipped))
        path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
        print(shipped, record(compiled(shipped)))


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_machine_code_is_what_the_budget_says(shipped):
    budgets = json.loads(budget_file(shipped).read_text())[str(shipped)]
    assert triton.__version__ in budgets, (
        f"no budget for Triton {triton.__version__}, only for {sorted(budgets)}; "
        "read the new counts and record them: python tests/kernels/test_compiled.py"
    )
    assert record(compiled(shipped)) == budgets[triton.__version__]


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_machine_code_streams(shipped):
    """What makes the kernel fast, whatever the version: no spill, no barrier, whole lines, few special functions."""
    code, module = compiled(shipped), importlib.import_module(f"hotplate.kernels.{shipped.room}.streaming")
    per_lane = module.COLUMNS_PER_WARP // 32
    assert code.count("LDL", "STL") == 0 and code.local_bytes == 0 and code.stack_bytes <= 8
    assert code.count("BAR") == 0 and code.shared_bytes == 0
    assert code.registers <= 255
    assert code.count("MUFU", innermost=True) <= shipped.mufu * module.SPAN * per_lane
    row_load = {2: "LDG.E", 4: "LDG.E.64"}[per_lane * shipped.dtype.itemsize // 2]  # one per row and lane
    assert sum(n for op, n in loads(code).items() if op.startswith(row_load)) >= shipped.rows * module.SPAN


def test_a_narrow_mark_costs_wide_loads():
    """The counter sees what it is there to see: without the mark of alignment no load is wide."""
    from hotplate.kernels.qlstm.streaming import forward_kernel

    pointers = {name: "*fp32" for name in ("gates", "h", "c_last")}
    absent = dict.fromkeys(("c0", "resets", "checkpoints", "product"))
    constants = {**absent, "N": 4, "K": 1, "BD": 128, "FAST": True, "HALF": False}
    signature = {**pointers, "T": "i32", "D": "i32", "offset": "fp32"}
    wide, narrow = (
        compile_kernel(forward_kernel, signature, constants, 90, num_warps=1, divisible_by_16=marked)
        for marked in ([*pointers, "D"], [])
    )
    assert wide.wide_share() == 1.0 and narrow.wide_share() == 0.0


def test_a_call_without_types_says_what_is_missing():
    from hotplate.kernels.qlstm.streaming import forward_kernel

    with pytest.raises(ValueError, match=r"^compile_kernel: .* lacking \['gates', .*name the types"):
        compile_kernel(forward_kernel, {}, {}, 90, num_warps=1)
    with pytest.raises(ValueError, match="want a @triton.jit function, got function; unset TRITON_INTERPRET"):
        compile_kernel(loads, {}, {}, 90, num_warps=1)


if __name__ == "__main__":
    rebaseline()
