"""Triton's folder of compiled kernels, to be carried; once there: `python -m hotplate.bench.kernel_cache FOLDER`.

A kernel lies under the hash of its source, its options, its target and of Triton itself; where all are the same, Triton
takes what it finds. But a group of files is listed with the paths where they were made.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

GROUP = "__grp__"
NEEDED = (".cubin", ".json", ".so")  # of what a kernel came from on the way, a launch reads nothing


def slim(folder: Path) -> None:
    """Deletes what a launch does not read."""
    for path in (path for path in folder.glob("*/*") if path.is_file()):
        if path.suffix not in NEEDED:
            path.unlink()
    settle(folder)


def settle(folder: Path) -> int:
    """Makes every group of files say that it is what lies beside it; how many groups there are."""
    groups = list(folder.absolute().glob(f"*/{GROUP}*"))
    for group in groups:
        names = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        paths = {name: str(group.parent / name) for name in names if (group.parent / name).exists()}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")
    return len(groups)


def main(arguments: Sequence[str]) -> int:
    (folder,) = map(Path, arguments)
    print(f"{settle(folder)} kernels compiled ahead")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
