"""A process that times training steps of the tree on its path: a line "k" in, processor seconds of k steps out, after
one that is not timed, as caches hold what another process left.

Run by path, so that the same file times other revisions too: it asks only for what every revision has had for long.
`python worker.py MODEL`; "ready", whether addresses are "fixed" or "random" and where the tree lies come first, an
empty line ends it. Where Linux allows it, memory lies at the same addresses in every process: at random ones (ASLR),
two processes of one tree differ for as long as they live, by much more than the test decides about (docs/log.md).
"""

import ctypes
import gc
import os
import sys
import time

ROWS, WINDOW, WARMUP = 2, 64, 5
ADDR_NO_RANDOMIZE, WHICH = 0x0040000, 0xFFFFFFFF  # of Linux's personality(2), as is which one a process has


def fix_addresses() -> bool:
    """Starts this program anew without random addresses, once. False where that is not allowed: they stay random."""
    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None).personality
    had = personality(ctypes.c_ulong(WHICH))
    if not had & ADDR_NO_RANDOMIZE and personality(ctypes.c_ulong(had | ADDR_NO_RANDOMIZE)) != -1:
        os.execv(sys.executable, sys.orig_argv)
    return had != -1 and bool(had & ADDR_NO_RANDOMIZE)


def main(name: str, addresses: str) -> None:
    from pathlib import Path

    import torch

    torch.set_num_threads(1)
    from hotplate.model.lm import LanguageModel
    from hotplate.model.presets import PRESETS
    from hotplate.train.config import OptimizerConfig
    from hotplate.train.optimizer import Optimizer
    from hotplate.train.ranks import Ranks
    from hotplate.train.step import Step
    from hotplate.train.throughput import random_batch

    config, device = PRESETS[name], torch.device("cpu")
    model = LanguageModel.build(config, seed=0)
    step = Step(model, Optimizer(model, OptimizerConfig()), Ranks(0, 1, device), "fp32", targets=ROWS * WINDOW)
    batch = random_batch(config, ROWS, WINDOW, device)
    states = [model.initial_state(ROWS) if config.recurrent else None]
    for _ in range(WARMUP):
        step([batch], states, lr=0.0)
    gc.collect()
    gc.freeze()
    gc.disable()
    print("ready", addresses, Path(sys.modules[LanguageModel.__module__].__file__ or "").resolve(), flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        step([batch], states, lr=0.0)
        before = time.process_time()
        for _ in range(int(line)):
            step([batch], states, lr=0.0)
        print(time.process_time() - before, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], "fixed" if fix_addresses() else "random")
