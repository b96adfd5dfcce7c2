"""NCCL's flight recorder: the last collectives of every rank, written into the run folder when one fails or hangs.

torch writes a pickle per rank (read by its own `torchfrtrace`), which hotplate never reads. Names of the variables:
torch 2.11 to 2.13; the older ones mean the same there.
"""

import os
from pathlib import Path

BUFFER = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
DUMP_ON_TIMEOUT = ("TORCH_NCCL_DUMP_ON_TIMEOUT",)
PREFIX = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")  # a rank's number is added
COLLECTIVES = "2000"  # remembered per rank, some hundreds of bytes each
NAME = "nccl-collectives-"


def record(folder: Path | None) -> None:
    """Before the first process group is made: remember collectives, and dump them into `folder` (None: torch's own
    place). What the user has set stays."""
    _default(BUFFER, COLLECTIVES)
    _default(DUMP_ON_TIMEOUT, "1")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _default(PREFIX, str(folder / NAME))


def dumps(since: float) -> list[Path]:
    """Files that ranks on this host, or on its disks, have written after `since` (Unix time)."""
    prefix = next((os.environ[name] for name in PREFIX if name in os.environ), None)
    if prefix is None:
        return []
    path = Path(prefix)
    found = [file for file in path.parent.glob(f"{path.name}*") if file.name[len(path.name) :].isdigit()]
    return sorted(file for file in found if file.stat().st_mtime >= since)


def told(since: float) -> list[str]:
    """A line about such files; none where there are none."""
    if not (found := dumps(since)):
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [f"NCCL's last collectives, by rank (read them with torchfrtrace): {found[0]}{more}"]


def _default(names: tuple[str, ...], value: str) -> None:
    if not any(name in os.environ for name in names):
        os.environ[names[0]] = value
