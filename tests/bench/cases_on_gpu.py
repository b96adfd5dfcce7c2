"""What `bench/gpu.sh` calls, some of it, on a stand-in GPU: prints what failed as JSON. A process of its own.

Small cases of rooms, of attention the widest heads in one packing, and benchmarks: what is launched compiles and fits,
and nothing is refused.
"""

import json

from hotplate.bench.stand_in import library

loaded = library.load()

import torch  # noqa: E402

from hotplate.bench.stand_in import device  # noqa: E402

device.install(90, loaded)

from hotplate.bench import device_cases  # noqa: E402
from hotplate.bench.stand_in import rehearsal  # noqa: E402

ROOMS = ("losses", "norms", "activations", "rotaries")  # recurrent kernels are compiled with their models' steps
ATTENTION = {torch.bfloat16: "K256 ", torch.float32: "K128 "}
BENCHMARKS = ("adamw", "rotary")


def cases(quick, dtype, where):
    wide = (case for case in device_cases.attentions(False, dtype, where) if "B2 T33" in case.label)
    yield from (case for case in wide if ATTENTION[dtype] in case.label)
    for name in ROOMS:
        yield from getattr(device_cases, name)(quick, dtype, where)


device_cases.cases = cases
parts = {part: rehearsal.run(part, True) for part in ("check-bfloat16", "check-float32", *BENCHMARKS)}


def planted(part, quick):
    def call():
        raise RuntimeError("does not run")

    yield "call", call
    yield "another", lambda: None


rehearsal.calls = planted
parts["planted"] = rehearsal.run("planted", True)
failed = {f"{part} {call}": why for part, found in parts.items() for call, why in found.failures.items()}
print(json.dumps({"counts": {part: found.calls for part, found in parts.items()}, "failed": failed}))
