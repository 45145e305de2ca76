"""Checks whether this machine can train: versions, devices, threads, compiled gradients, disk and process groups."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from progc.errors import ProgcError, one_line
from progc.runs.record import versions

State = Literal["ok", "note", "broken"]
WRITTEN = 32 << 20
"""Bytes written to measure the disk."""
SLOW_DISK = 50.0  # MB/s: a checkpoint of a base-size network, with optimizer state, then takes 20 seconds
OLDEST = (2, 11)
EXTRAS = {
    "matplotlib": "progc plot", "tensorboard": "trackers.tensorboard", "wandb": "trackers.wandb", "datasets": "hf:PATH",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: `ok`, `note`, or `broken`: training is impossible or wrong.
        text: one sentence for the user.
    """

    name: str
    state: State
    text: str


def checks(folder: Path) -> Iterator[Check]:
    """Runs the checks one after another and yields their results; a check that fails is reported as `broken`.

    Args:
        folder: folder in which runs will be written.
    """
    everything: list[tuple[str, Callable[[], Check]]] = [
        ("versions", _versions), ("devices", _devices), ("threads", _threads), ("compiler", _compiler),
        ("disk", lambda: _disk(folder)), ("processes", _processes), ("extras", _extras),
    ]  # fmt: skip
    for name, check in everything:
        try:
            yield check()
        except Exception as error:  # any failure is a result
            yield Check(name, "broken", " ".join(f"{type(error).__name__}: {error}".split()))


def _versions() -> Check:
    import torch

    text = ", ".join(f"{name} {version}" for name, version in versions().items())
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST:
        return Check("versions", "broken", f"{text}; torch {'.'.join(map(str, OLDEST))} or newer is needed")
    return Check("versions", "ok", f"{text}, {platform.system()} {platform.machine()}")


def _devices() -> Check:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"this torch (built for CUDA {built}) finds none" if built else "this torch is built for CPUs only"
        return Check("devices", "ok", f"cpu; no GPU: {why}")
    names = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        torch.ones(8, device=f"cuda:{index}").sum().item()  # a visible GPU may still fail to compute
        names.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    return Check("devices", "ok", "; ".join(names))


def _threads() -> Check:
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    used = torch.get_num_threads()
    text = f"torch uses {used}, this process has {cores} cores"
    if used > cores:
        return Check("threads", "note", f"{text}; more threads than cores slow training down: set OMP_NUM_THREADS")
    return Check("threads", "ok", text)


def _compiler() -> Check:
    import torch

    from progc.emit.canary import check_compiler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    try:
        check_compiler(device)
    except ProgcError as error:
        return Check("compiler", "broken", f"{error}; with progc train: --set train.compile=eager")
    except Exception as error:  # usually a missing C++ compiler, for which torch raises many types
        reason = one_line(error, 200)
        text = f"torch.compile fails on {device} ({type(error).__name__}: {reason}); use --set train.compile=eager"
        return Check("compiler", "broken", text)
    spent = time.perf_counter() - start
    return Check("compiler", "ok", f"gradients of compiled functions are correct on {device} ({spent:.1f} s)")


def _disk(folder: Path) -> Check:
    there = folder.resolve()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".progc-doctor-") as file:
            start = time.perf_counter()
            for _ in range(WRITTEN >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = WRITTEN / 1e6 / (time.perf_counter() - start)
            start = time.perf_counter()
            file.write(b"1")
            file.flush()
            os.fsync(file.fileno())
            stall = (time.perf_counter() - start) * 1e3
            facts = os.statvfs(there) if hasattr(os, "statvfs") else None
    except OSError as error:
        return Check("disk", "broken", f"{there} cannot be written: {error.strerror or error}")
    free = f", {facts.f_bavail * facts.f_frsize / 2**30:.1f} GiB free" if facts is not None else ""
    text = f"{there}: {speed:.0f} MB/s with fsync, {stall:.1f} ms for an fsync{free}"
    if speed < SLOW_DISK:
        return Check("disk", "note", f"{text}; slow: save less often (train.save_every), or choose another disk")
    return Check("disk", "ok", text)


def _processes() -> Check:
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return Check("processes", "note", "this torch has no torch.distributed; only one process can train")
    found = [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there]
    if "nccl" not in found and torch.cuda.device_count() > 1:
        return Check("processes", "broken", "several GPUs, but this torch has no nccl; install a torch that has it")
    if not found:
        return Check("processes", "note", "this torch has neither gloo nor nccl; only one process can train")
    with tempfile.TemporaryDirectory(prefix="progc-doctor-") as scratch:
        if "gloo" in found and not dist.is_initialized():
            # A group of one opens the sockets that a larger one needs.
            group: Any = dist.ProcessGroupGloo(dist.FileStore(str(Path(scratch) / "store"), 1), 0, 1)
            group.allreduce([torch.ones(1)]).wait()
    return Check("processes", "ok", f"{' and '.join(found)}; start several processes with torchrun -m progc train ...")


def _extras() -> Check:
    missing = [f"{name} ({use})" for name, use in EXTRAS.items() if importlib.util.find_spec(name) is None]
    if missing:
        return Check("extras", "ok", f"not installed: {', '.join(missing)}")
    return Check("extras", "ok", "all installed")
