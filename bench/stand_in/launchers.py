"""What Triton 3.6 builds with a C compiler when a kernel is loaded: a launcher for every signature, half a second each.

They are linked with the driver's library, of which a machine without a GPU has none: an empty one stands in. Nothing is
loaded here; Triton takes what it finds in its folder. Later versions build one launcher for all.
"""

import hashlib
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from triton.backends.nvidia import driver
from triton.runtime import build
from triton.runtime.cache import get_cache_manager

NAME = "__triton_launcher"


def apart() -> bool:
    """Whether this Triton builds a launcher for every signature."""
    return hasattr(driver, "make_launcher")


def prepare(source: Any, metadata: Any) -> None:
    """The launcher of a kernel (ASTSource, its metadata), as CudaLauncher makes it."""
    places = {name: (place,) for place, name in enumerate(source.fn.arg_names)}
    constants = {places.get(name, name): value for name, value in source.constants.items()}
    _built(driver.make_launcher(constants, dict(source.signature), getattr(metadata, "tensordesc_meta", None)), NAME)


def prepare_driver() -> None:
    """What asks the driver, once."""
    _built((Path(driver.dirname) / "driver.c").read_text(encoding="utf-8"), "cuda_utils")


@cache
def _built(code: str, name: str) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    folder = get_cache_manager(hashlib.sha256((code + build.platform_key()).encode("utf-8")).hexdigest())
    if folder.get_file(name + suffix) is not None:
        return
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{name}.c"
        path.write_text(code, encoding="utf-8")
        library = ["cc", "-shared", "-x", "c", "/dev/null", "-o", f"{place}/libcuda.so.1"]
        subprocess.run(library, check=True)
        made = build._build(name, str(path), place, [place], driver.include_dirs, driver.libraries, [])
        folder.put(Path(made).read_bytes(), name + suffix, binary=True)
