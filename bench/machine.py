"""Which machine a result belongs to."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def _cpu_model() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_record(device: str) -> dict[str, object]:
    """name, cores, threads, versions and date (UTC, ISO 8601): what it takes to compare two files."""
    return {
        "name": torch.cuda.get_device_name() if device == "cuda" else _cpu_model(),
        "device": device,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
