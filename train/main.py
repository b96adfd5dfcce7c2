"""`torchrun train/main.py [PRESET] [flags]`: the same as `hotplate train`, from a checkout, on one or many ranks."""

import sys
from pathlib import Path
from types import ModuleType

if not __package__:  # run as a file: this checkout is `hotplate`, installed or not
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if entry != str(here)]  # train/*.py must not shadow the stdlib
    sys.modules.setdefault("hotplate", ModuleType("hotplate")).__path__ = [str(here.parent)]

if __name__ == "__main__":
    from hotplate.train.commands import guarded, idle_threads_sleep

    idle_threads_sleep()
    from hotplate.train.commands.train import main

    sys.exit(guarded(main, sys.argv[1:]))
