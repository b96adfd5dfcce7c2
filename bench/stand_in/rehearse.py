"""What `bench/gpu.sh` checks and times of ours, on a stand-in GPU.

`python -m hotplate.bench.stand_in.rehearse FOLDER [PART...]`
Says what does not run, and leaves the compiled kernels in FOLDER, to be carried to a GPU machine with the same versions
of Triton and Python: compiling takes minutes, of which a lent machine has few. Parts are `check-DTYPE`, the calls of
device_check.py, and names of benchmarks, of which hotplate's own providers run; none named: all. With --quick on small
shapes. A process for every part, as many at a time as there are cores.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hotplate.bench import kernel_cache

ALONE = "HOTPLATE_REHEARSES"  # in the environment of a part's process


def main(arguments: Sequence[str]) -> int:
    """0 when everything ran; 1, after all that does not was named, else."""
    parser = argparse.ArgumentParser(prog="python -m hotplate.bench.stand_in.rehearse", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    if os.environ.get(ALONE):
        return _alone(options.parts, options.quick)
    told = os.environ | {ALONE: "1", "TRITON_CACHE_DIR": str(options.folder.absolute())}
    again = [sys.executable, "-W", "ignore", "-m", __spec__.name, str(options.folder), *["--quick"][: options.quick]]

    def run(part: str) -> int:
        done = subprocess.run([*again, part], stdout=subprocess.PIPE, text=True, env=told, check=False)
        print(done.stdout or f"{part}: ended without a word, exit code {done.returncode}\n", end="", flush=True)
        return done.returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = list(pool.map(run, options.parts or _parts()))
    kernel_cache.slim(options.folder)
    return int(any(codes))


def _parts() -> list[str]:
    """All, the longest first."""
    from hotplate.bench import registry

    return ["check-float32", "check-bfloat16", registry.STEP, *(n for n in registry.names() if n != registry.STEP)]


def _alone(parts: Sequence[str], quick: bool) -> int:
    """Parts in this process. The library comes before torch, the device before what remembers torch.cuda's words."""
    from hotplate.bench.stand_in import library

    loaded = library.load()
    from hotplate.bench.stand_in import device
    from hotplate.bench.stand_in.worker import CAPABILITY

    device.install(CAPABILITY, loaded)
    from hotplate.bench.stand_in import rehearsal

    failed = False
    for part in parts:
        found = rehearsal.run(part, quick)
        print(f"{part}: {found.calls} calls, {found.launches} launches of {len(found.kernels)} kernels", flush=True)
        for call, why in found.failures.items():
            print(f"{part}: FAILED {call}: {why}", flush=True)
        failed |= bool(found.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
