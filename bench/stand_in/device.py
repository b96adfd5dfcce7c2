"""Makes a process that has loaded the library (`library.py`) believe in one GPU of a given compute capability.

What stands in, and why: torch.cuda's queries; constructors and views that compiled code takes from C++ and that would
ask for memory; the real bodies of hotplate's operators in place of their fake forms, so that their launches happen;
Triton's driver, which compiles but starts nothing. Nothing is undone: the process is the stand-in's.
"""

import contextlib
from collections.abc import Callable, Mapping
from ctypes import CDLL
from types import SimpleNamespace
from typing import Any

import torch
import triton  # noqa: F401  (its backends must be known before a driver is chosen)
from torch import Tensor
from torch._library import custom_ops
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

PROCESSORS = {80: 108, 90: 132, 100: 148}  # A100, H100, B200
SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}  # that a program may have
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)
ALLOCATED = 1 << 32  # where every allocation pretends to lie: allocations are aligned to more than any kernel asks for

Launched = Callable[[str, Mapping[str, Any]], None]  # kernel's name, and its arguments by name


listeners: list[Launched] = []  # hear of every Triton launch, after it was compiled and found to fit the device
loaders: list[Callable[[Any, Any], None]] = []  # hear of every kernel, before its first launch: its source and metadata


def install(capability: int, library: CDLL) -> None:
    """From now on `cuda` is a GPU of compute capability `capability` / 10. `library` was loaded before torch;
    this comes before torch.compile is imported, which remembers torch.cuda's functions."""
    library.take_over()
    _queries(capability)
    _memory()
    _triton(capability)
    _compiler()


def _queries(capability: int) -> None:
    shared = SHARED_BYTES[capability]
    properties = SimpleNamespace(
        **{"name": "stand-in", "total_memory": 80 << 30, "warp_size": 32, "L2_cache_size": 50 << 20},
        **{"major": capability // 10, "minor": capability % 10, "multi_processor_count": PROCESSORS[capability]},
        **{"shared_memory_per_block_optin": shared, "shared_memory_per_multiprocessor": shared + 1024},
        **{"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048},
    )
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: divmod(capability, 10),
        "get_device_properties": lambda device=None: properties,
        "device": lambda device: contextlib.nullcontext(),
        "device_of": lambda tensor: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
    }
    _replace(torch.cuda, answers)
    # That torch has a function to count devices is taken for CUDA's being there.
    _replace(torch._C, {"_cuda_getDeviceCount": lambda: 1, "_cuda_getCurrentRawStream": lambda device: 0})
    _replace(torch.version, {"cuda": "13.0"})


def _replace(where: Any, answers: Mapping[str, Any]) -> None:
    for name, answer in answers.items():
        setattr(where, name, answer)


def _memory() -> None:
    """Addresses, which alignment is asked of; copies to the device, whose host side a real one would pin, and tensors
    made there of Python's numbers; and lists of fake tensors are taken in one launch, as lists of tensors are."""
    made = torch.tensor

    def tensor(data: Any, *, device: torch.device | str | None = None, **named: Any) -> Tensor:
        return made(data, **named) if device is None else made(data, **named).to(device)

    _replace(torch, {"tensor": tensor})
    torch.utils._foreach_utils._foreach_supported_types.append(FakeTensor)
    _replace(fake_tensor, {"init_gpu_context": lambda *device: None})
    _replace(FakeTensor, {"data_ptr": lambda self: ALLOCATED + self.storage_offset() * self.itemsize})
    _replace(Tensor, {"pin_memory": lambda self, *device: self})


def real_bodies(entered: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Operators of hotplate registered so far run their bodies, within `entered()`, where only shapes are asked for."""
    for operator in list(custom_ops.OPDEFS.values()):
        if operator._namespace == "hotplate" and operator._abstract_fn is not None:
            operator._abstract_fn = _body(operator._init_fn, entered)


def _body(function: Callable[..., Any], entered: Callable[[], contextlib.AbstractContextManager[None]]) -> Any:
    def body(*arguments: Any, **named: Any) -> Any:
        with entered():
            return function(*arguments, **named)

    return body


class _Utilities:
    """What Triton asks of a driver once a kernel is compiled."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_BYTES[self._capability],
            "multiprocessor_count": PROCESSORS[self._capability],
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, most lanes of a program: shared memory was checked before."""
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None: ...


def _triton(capability: int) -> None:
    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            self.metadata, self.names = metadata, list(source.signature)
            for loader in loaders:
                loader(source, metadata)
            if wide := sorted(name for name, kind in source.signature.items() if "fp64" in kind):
                raise RuntimeError(f"stand-in GPU: {metadata.name}: {wide} are fp64, in which a GPU is slow")

        def __call__(
            self, x: int, y: int, z: int, stream: int, function: int, packed: Any, meta: Any, before: Any, after: Any,
            *arguments: Any,
        ) -> None:  # fmt: skip
            if not all(0 < n <= most for n, most in zip((x, y, z), MOST_PROGRAMS, strict=True)):
                raise RuntimeError(
                    f"stand-in GPU: {self.metadata.name}: {x} x {y} x {z} programs, at most {MOST_PROGRAMS}"
                )
            for listener in listeners:
                listener(self.metadata.name, dict(zip(self.names, arguments, strict=True)))

    class Driver(DriverBase):
        launcher_cls = Launcher
        utils = _Utilities(capability)

        def __init__(self) -> None: ...

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def map_python_to_cpp_type(self, name: str) -> str:
            return name

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("stand-in GPU: nothing can be timed")

    driver.set_active(Driver())


def _compiler() -> None:
    """What torch.compile would do on the device: time candidates (the first is taken), fold constants, look for
    attention that was written out; and what its code takes from C++."""
    import torch._dynamo
    import torch._inductor.config as inductor
    import torch._inductor.runtime.triton_helpers as helpers
    from torch._inductor.fx_passes import fuse_attention, pad_mm
    from torch._inductor.runtime import benchmarking

    settings = {"compile_threads": 1, "use_static_cuda_launcher": False, "joint_graph_constant_folding": False}
    _replace(inductor, settings)
    _replace(helpers, {"set_driver_to_gpu": lambda: None})
    _replace(fuse_attention, {"_sfdp_init": lambda *arguments, **named: None})
    _replace(pad_mm, {"_pad_mm_init": lambda *arguments, **named: None})
    timed = {"benchmark_gpu": lambda self, call, *arguments, **named: (call(), 1.0)[1]}
    for kind in (benchmarking.Benchmarker, benchmarking.TritonBenchmarker, benchmarking.InductorBenchmarker):
        _replace(kind, timed)

    def empty(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="cuda")

    def view(x: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
        return torch.as_strided(x, size, stride, x.storage_offset() + offset)

    _replace(torch._C._dynamo.guards, {"_empty_strided_cuda": empty, "_reinterpret_tensor": view})
