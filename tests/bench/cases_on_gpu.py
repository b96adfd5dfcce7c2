"""Calls of the device check on a stand-in GPU, forward and backward: prints what failed as JSON. A process of its own.

Small cases of rooms, and of attention the widest heads, in one packing: what is launched compiles and fits, and
nothing is refused.
"""

import json
from contextlib import nullcontext

from hotplate.bench.gates.stand_in import library

loaded = library.load()

import torch  # noqa: E402

from hotplate.bench.gates.stand_in import device  # noqa: E402

device.install(90, loaded)

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from hotplate.bench import device_cases, device_check  # noqa: E402
from hotplate.kernels.attention import registered as attention  # noqa: E402, F401
from hotplate.kernels.cross_entropy import registered as losses  # noqa: E402, F401
from hotplate.kernels.mlp import streaming as activations  # noqa: E402, F401
from hotplate.kernels.norm import streaming as norms  # noqa: E402, F401
from hotplate.kernels.qlstm import registered as qlstm  # noqa: E402, F401
from hotplate.kernels.rotary import streaming as rotaries  # noqa: E402, F401

ROOMS = ("losses", "norms", "activations", "rotaries")  # recurrent kernels are compiled with their models' steps
ATTENTION = {torch.bfloat16: "K256 ", torch.float32: "K128 "}

made = torch.tensor
torch.tensor = lambda data, *, device, **named: made(data, **named).to(device)  # torch itself cannot make one there
failed, count = {}, 0
for dtype in (torch.bfloat16, torch.float32):
    with FakeTensorMode():
        packed = (case for case in device_cases.attentions(False, dtype, "cuda") if "B2 T33" in case.label)
        wide = (case for case in packed if ATTENTION[dtype] in case.label)
        for cases in (wide, *(getattr(device_cases, name)(True, dtype, "cuda") for name in ROOMS)):
            for case in cases:
                device.real_bodies(nullcontext)
                count += 1
                try:
                    device_check.results(case, case.leaves, "triton")
                except Exception as error:
                    failed[f"{case.label} {dtype}"] = f"{type(error).__name__}: {error}"
print(json.dumps({"count": count, "failed": failed}))
