"""The process that a command runs in."""

import subprocess
import sys


def test_the_dispatcher_loads_torch_only_with_the_command() -> None:
    """The thread policy is read when torch is loaded, so it must be set before."""
    program = (
        "import sys; from hotplate.train import commands; commands.idle_threads_sleep(); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    program = "from hotplate.train.commands import main; main()"
    command = f"{sys.executable} -c '{program}' train --presets | true; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr and found.returncode in (0, 141)


def test_starting_a_command_does_not_load_the_compiler() -> None:
    slow = {"torch._dynamo", "scipy.fft", "scipy.signal"}
    loaded = f"import sys, hotplate.train.commands.train; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
