"""What the kernels' sources are: for caches on disk that hold what was made of them."""

import hashlib
from functools import cache
from pathlib import Path

KERNELS = Path(__file__).resolve().parent


@cache
def fingerprint(folder: Path = KERNELS) -> str:
    """16 hexadecimal digits of all Python under `folder`, names included."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def mark_compiled_code() -> None:
    """From now on torch.compile's caches on disk tell versions of hotplate apart.

    Their keys know operators by name. What a triton_op launches is part of the compiled graph, though, so that a graph
    from before a kernel changed would go on launching what the kernel was.
    """
    import torch.compiler.config as settings

    mark = f"hotplate-{fingerprint()}"
    if mark not in settings.cache_key_tag:
        settings.cache_key_tag += mark
