"""Joins the processes that torchrun started."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from progc.errors import InputError, one_line
from progc.ranks import notices
from progc.train.parallel.base import TIMEOUT, Parallel, Single


def opened_parallel(kind: str, device: str) -> Parallel:
    """Joins the processes that torchrun describes in the environment; without torchrun there is one process.

    Args:
        kind: `auto`, `none`, `ddp` or `fsdp`; a single process started by torchrun trains alone with any of them.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; with several processes each takes the GPU of its local rank.

    Raises:
        InputError: `none` with several processes, an unknown device, or the processes cannot connect.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        if kind in ("ddp", "fsdp") and "WORLD_SIZE" not in os.environ:
            raise InputError(f"parallel={kind} needs several processes; start it with torchrun -m progc train")
        return Single(_device(device))
    if kind == "none":
        raise InputError(f"torchrun started {world} processes, but parallel=none trains in one; leave parallel out")
    place = _device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo", store=dist.PrefixStore("progc", store), rank=rank,
            world_size=world, timeout=TIMEOUT,
        )  # fmt: skip
        notices.use(store)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes cannot connect to one another: {one_line(error)}") from error
    if kind == "fsdp":
        from progc.train.parallel.fsdp import Fsdp

        return Fsdp(place)
    from progc.train.parallel.ranks import Ddp

    return Ddp(place)


def closed() -> None:
    """Leaves the process group if there is one."""
    notices.use(None)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"unknown device `{text}`; use auto, cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device `{text}`: torch finds no CUDA device on this machine; use auto or cpu")
    return found
