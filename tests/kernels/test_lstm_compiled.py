"""Machine code of the Triton kernels of lstm and lstm_dense for compute capability 9, without a GPU.

budgets/lstm.json holds the most registers, shared memory, barriers and loop instructions of each shipped
configuration over the versions of Triton that are supported (3.6 and 3.9); nothing may ever spill.
"""

import importlib
import json
from pathlib import Path

import pytest

from hotplate.kernels.compiled import compile_kernel

importlib.import_module("triton")
from hotplate.kernels.lstm import resident  # noqa: E402
from hotplate.kernels.lstm_dense import persistent  # noqa: E402

BUDGETS = json.loads((Path(__file__).resolve().parent / "budgets" / "lstm.json").read_text(encoding="utf-8"))
SHARED_BYTES = 232448  # what one program may take on compute capability 9
IO = ("gates", "recurrent", "h", "pre", "dh", "dgates", "exchange")  # in the dtype of gates; other pointers are fp32
INTEGERS = ("T", "B", "H", "R", "K")
UNALIGNED = ("T", "B", "H", "R", "offset", "keep")


def compiled(room, kernel, width, dtype):
    """The kernel as its room launches it, with resets, and a width that fills its blocks."""
    module = {"lstm": resident, "lstm_dense": persistent}[room]
    constants = {"BB": module.ROWS, "FAST": True, "UPCAST": False}
    if room == "lstm":
        constants |= {"W": width, "STAGES": resident.STAGES, "EVEN": True, "HALF": dtype != "fp32"}
        options = {"num_warps": resident.warps(width)}
    else:
        constants |= {"D": width, "DS": persistent.SLICE, "G": width // persistent.SLICE, "FLAGS": persistent.FLAGS}
        constants["PIECE"] = persistent.piece(width)
        options = {"num_warps": persistent.WARPS, "launch_cooperative_grid": True}
    function = getattr(module, kernel)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}

    def type_of(name):
        if name in INTEGERS or name.endswith(("_stride", "_row", "_step", "_head")):
            return "i32"
        return {"offset": "fp32", "flags": "*i32"}.get(name, f"*{dtype}" if name in IO else "*fp32")

    signature = {name: type_of(name) for name in function.arg_names if name not in constants}
    aligned = [name for name in signature if name not in UNALIGNED]
    return compile_kernel(function, signature, constants, 90, divisible_by_16=aligned, **options)


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: f"{b['room']} {b['kernel']} {b['width']} {b['dtype']}")
def test_machine_code_stays_within_budget(budget):
    code = compiled(budget["room"], budget["kernel"], budget["width"], budget["dtype"])
    assert code.stack_bytes == 0 and code.local_bytes == 0 and code.count("LDL", "STL") == 0, "registers spill"
    assert code.registers <= budget["registers"]
    assert code.shared_bytes <= min(budget["shared_bytes"], SHARED_BYTES)
    assert code.count("BAR") <= budget["barriers"]
    assert code.count("HMMA", "HGMMA") > 0, "no matrix instructions"
    if budget["room"] == "lstm":
        assert code.count("BAR", innermost=True) <= budget["loop_barriers"]
        assert sum(code.innermost.values()) <= budget["loop_instructions"]
        assert code.count("LDGSTS", innermost=True) > 0, "the loads of a step are not under way before it"


def test_waiting_programs_spin_without_a_barrier():
    """lstm_dense polls its flags in the only loop that holds no other: a load, a reduction over lanes, a branch."""
    code = compiled("lstm_dense", "forward_kernel", 512, "bf16")
    assert code.count("LDG", innermost=True) == 1
    assert code.count("REDUX", innermost=True) == 1
    assert code.count("BAR", innermost=True) == 0


def test_every_width_of_the_grid_that_waits_fits():
    """Beside R's slice and two blocks of h the compiler needs little."""
    widest = compiled("lstm_dense", "forward_kernel", max(persistent.WIDTHS), "fp16")
    assert widest.stack_bytes == 0 and widest.shared_bytes <= SHARED_BYTES
