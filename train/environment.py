"""Where and with what a run was made: written beside its results."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "hotplate",
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "flash-attn",
    "xformers",
)


def git_revision() -> str | None:
    """Commit of this checkout, with `-dirty` when it has changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name; with its family and model, where the system tells: on virtual machines names alone are vague."""
    facts: dict[str, str] = {}
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    number = f", family {facts['cpu family']} model {facts['model']}" if {"cpu family", "model"} <= set(facts) else ""
    return facts["model name"] + number


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and revision, as JSON-like values."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device": device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions,
        "revision": git_revision(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
