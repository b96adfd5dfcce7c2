"""Processes of one run: who this one is, where it computes, and the few things ranks say to each other."""

import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hotplate.train import flight
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.heap import keep_freed_memory
from hotplate.train.rendezvous import join

INIT_TIMEOUT = datetime.timedelta(minutes=10)
SAVING_TIMEOUT = datetime.timedelta(hours=2)  # one rank's disk may be much slower than another's


@dataclass(frozen=True)
class Ranks:
    """This process among `world` equal ones."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # between CPUs: asking it never waits for a GPU
    background: dist.ProcessGroup | None = None  # between the threads that write checkpoints

    @property
    def main(self) -> bool:
        """Whether this rank writes the run folder and the console."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Per flag, whether any rank says yes: the same answers on all of them."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def share(self, value: object, *, background: bool = False) -> Any:
        """The main rank's JSON-like value, on every rank."""
        if self.world == 1:
            return value
        group = self.background if background else self.control
        data = _encoded(value)
        size = torch.tensor(len(data))
        dist.broadcast(size, src=0, group=group)
        if not self.main:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=0, group=group)
        return _decoded(data)

    def gather(self, value: object) -> list[Any]:
        """The JSON-like values of all ranks, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        data = _encoded(value)
        sizes = self._sizes(data, self.control)
        padded = torch.nn.functional.pad(data, (0, max(sizes) - len(data)))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.control)
        return [_decoded(part[:size]) for part, size in zip(parts, sizes, strict=True)]

    def collect(self, value: object) -> list[Any]:
        """The JSON-like values of all ranks' background threads, in rank order, on the main rank's; else nothing."""
        if self.world == 1:
            return [value]
        data = _encoded(value)
        sizes = self._sizes(data, self.background)
        padded = torch.nn.functional.pad(data, (0, max(sizes) - len(data)))
        parts = [torch.empty_like(padded) for _ in sizes] if self.main else None
        dist.gather(padded, parts, dst=0, group=self.background)
        return [_decoded(part[:size]) for part, size in zip(parts or [], sizes if parts else [], strict=True)]

    def _sizes(self, data: Tensor, group: dist.ProcessGroup | None) -> list[int]:
        sizes = [torch.zeros((), dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor(len(data)), group=group)
        return [int(size) for size in sizes]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks(0, 1, torch.device("cpu"))


def start(config: TrainConfig) -> Ranks:
    """Read torchrun's environment, check the device and join the others. InputError when the device is missing."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local, local_world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = _device(config, local)
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(config.execution.threads or max(1, cores // local_world))
        keep_freed_memory()
    if config.batch % world:
        legal = [n for n in range(1, config.batch + 1) if config.batch % n == 0]
        raise InputError(
            f"--batch {config.batch} does not divide over {world} ranks; use {legal} ranks or another batch"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world > 1:
        if backend == "nccl":
            flight.record(None if config.run.folder is None else Path(config.run.folder) / "ranks")
        join(backend, INIT_TIMEOUT)
    elif config.engine.kind != "ddp":  # these want a group also of one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    control = dist.new_group(backend="gloo", timeout=INIT_TIMEOUT) if world > 1 and device.type == "cuda" else None
    background = dist.new_group(backend="gloo", timeout=SAVING_TIMEOUT) if world > 1 else None
    return Ranks(rank, world, device, control, background)


def _device(config: TrainConfig, local: int) -> torch.device:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device == "auto" and not found):
        return torch.device("cpu")
    if not found:
        why = "this torch is a CPU build" if torch.version.cuda is None else "no driver or no visible GPU"
        raise InputError(
            f"--device cuda: no CUDA device here ({why}); install a CUDA build of torch or use --device cpu"
        )
    if local >= found:
        raise InputError(f"torchrun: local rank {local} but {found} CUDA devices; lower --nproc-per-node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _encoded(value: object) -> Tensor:
    """A JSON-like value as bytes in a tensor: what ranks tell each other is not pickled."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())
