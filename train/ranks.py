"""Processes of one run: who this one is, where it computes, and the few things ranks say to each other."""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.rendezvous import join

INIT_TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` equal ones."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # between CPUs: asking it never waits for a GPU

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

    def share(self, value: object) -> object:
        """The main rank's JSON-like value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks in rank order, on every rank."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks in backward."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def start(config: TrainConfig) -> Ranks:
    """Read torchrun's environment, check the device and join the others. InputError when the device is missing."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local, local_world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = _device(config, local)
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(config.threads or max(1, cores // local_world))
    if config.batch % world:
        legal = [n for n in range(1, config.batch + 1) if config.batch % n == 0]
        raise InputError(
            f"--batch {config.batch} does not divide over {world} ranks; use {legal} ranks or another batch"
        )
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        join(backend, INIT_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=INIT_TIMEOUT) if world > 1 and device.type == "cuda" else None
    return Ranks(rank, world, device, control)


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
