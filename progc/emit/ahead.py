"""Compiles the next stage while the present one trains, in another process and its own cache folder.

When that process has compiled everything, its cache folder is merged into that of this process, file by file; each file
is written under a temporary name and then renamed. If the compilation is killed or fails, its folder is removed, and
the stage is compiled in place when it starts.

A note in the cache folder, under a hash of everything that a region depends on, records that the region was compiled.
The keys of the cache itself can only be computed by tracing the region again. If the cache was pruned, a note is out of
date, and the region is compiled in place.

`torch.compiler.save_cache_artifacts` does not replace the merge: on CPU (torch 2.14) its artifacts contain the entries
of AOTAutograd and Inductor but not the compiled C++ kernels, so the training process would run the C++ compiler again,
which is most of the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch

from progc.emit.specs import arguments, region_to_json
from progc.emit.stage_module import StageModule, calls, settings
from progc.files.writing import replacing, write_json
from progc.ir.program import Mode, Program


@dataclasses.dataclass
class Ahead:
    """A running compilation.

    Attributes:
        folder: its recipe, log and cache.
        process: None if there is nothing to compile.
        regions: number of regions that it compiles.
        left: keys of regions that can only be compiled in place.
    """

    folder: Path
    process: subprocess.Popen[bytes] | None
    regions: int
    left: tuple[str, ...]
    started: float
    notes: tuple[Path, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the process is still compiling."""
        return self.process is not None and self.process.poll() is None

    def finish(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits, merges the compiled files, and removes the folder.

        Args:
            stop: called while waiting; once it returns True, the compilation is cancelled.

        Returns:
            Whether everything is in the cache now; False after a failure or a stop.
        """
        done = self.process is None
        while self.process is not None and not stop():
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = self.process.wait(0.2) == 0
                break
        if done and self.process is not None:
            merge(self.folder / "cache", cache_folder())
            write_notes(self.notes)
        self.cancel()
        return done

    def cancel(self) -> None:
        """Ends the process, if it is still running, and removes its folder."""
        if self.process is not None:
            if self.running:
                self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def compile_ahead(
    program: Program,
    module: StageModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    modes: tuple[Mode, ...] = ("train",),
    autocast: torch.dtype | None = None,
    device: torch.device | None = None,
    nice: int = 10,
    threads: int = 1,
) -> Ahead:
    """Starts compiling the regions of `module`, and returns at once.

    Args:
        program: the program that `module` was emitted from.
        module: the stage module.
        args, kwargs: inputs at the training size; only shapes, dtypes and devices matter.
        modes: the graphs to compile.
        autocast: dtype of mixed precision, if training uses it.
        device: device of the training; None: that of the program's tensors.
        nice, threads: niceness and number of threads of the process, so that the running training keeps its speed.
    """
    recipe, left = _recipe(program, module, args, kwargs or {}, modes, autocast, device)
    places = notes_of(cache_folder(), recipe)
    missing = [k for k, place in enumerate(places) if not place.exists()]
    folder = Path(tempfile.mkdtemp(prefix="progc-compile-"))
    if not missing:
        return Ahead(folder, None, 0, left, time.monotonic())
    recipe = {**recipe, "regions": [recipe["regions"][k] for k in missing], "nice": nice, "threads": threads}
    write_json(folder / "recipe.json", recipe)
    (folder / "cache").mkdir()
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_CACHE_DIR", None)  # Triton then uses Inductor's folder
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "progc.emit.compile_child", str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C goes to the training only, which calls `cancel` when it ends
        )
    return Ahead(folder, process, len(missing), left, time.monotonic(), tuple(places[k] for k in missing))


def compiled_in_place(
    program: Program,
    module: StageModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    modes: tuple[Mode, ...] = ("train",),
    autocast: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Records that this process has compiled the regions of `module`, forward and backward, into the cache.

    Args:
        program, module, args, kwargs, modes, autocast, device: as for `compile_ahead`.
    """
    recipe, _ = _recipe(program, module, args, kwargs, modes, autocast, device)
    write_notes(notes_of(cache_folder(), recipe))


def _recipe(
    program: Program,
    module: StageModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    modes: tuple[Mode, ...],
    autocast: torch.dtype | None,
    device: torch.device | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data to compile the regions elsewhere, and keys of regions that can only be compiled in place."""
    found: list[dict[str, Any]] = []
    left: list[str] = []
    place = "cpu"
    for mode in modes:
        own = calls(module, mode)
        regions = {call.region.key: call.region for call in own if call.region.computes}
        given = arguments(program, mode, own, args, kwargs, device, autocast)
        for key, region in regions.items():
            data = region_to_json(region, given[key])
            left += [key] if data is None else []
            found += [] if data is None else [data]
            place = next(
                (item["device"] for item in (data or {}).get("arguments", []) if isinstance(item, dict)), place
            )
    setting = {"device": place.partition(":")[0], "dtype": str(autocast).removeprefix("torch.")} if autocast else None
    recipe = {
        "config": inductor_config(),
        "backward": functorch.force_non_lazy_backward_lowering,
        "regions": found,
        "options": settings(module),
        "autocast": setting,
    }
    return recipe, tuple(left)


def inductor_config() -> dict[str, Any]:
    """Returns the plain settings of Inductor in this process, which are part of its cache keys."""
    from torch._inductor import config

    values: dict[str, Any] = config.get_config_copy()
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


def cache_folder() -> Path:
    """Returns the cache folder of Inductor in this process."""
    from torch._inductor.codecache import cache_dir

    return Path(cache_dir())


def notes_of(cache: Path, recipe: Mapping[str, Any]) -> list[Path]:
    """Returns the path of the note of each region of a recipe, whether it exists or not."""
    common = {name: recipe[name] for name in ("config", "backward", "options", "autocast")}
    found = []
    for item in recipe["regions"]:
        text = json.dumps([torch.__version__, common, item], sort_keys=True, default=str)
        found.append(cache / "progc" / hashlib.sha256(text.encode()).hexdigest())
    return found


def write_notes(places: Iterable[Path]) -> None:
    """Records that these regions are in the cache."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def merge(source: Path, target: Path) -> int:
    """Copies the files of one cache folder that are missing in another into that one; returns their number."""
    count = 0
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_symlink() or not path.is_file() or path.suffix == ".lock" or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place, durable=False) as temporary:
            shutil.copy2(path, temporary)
            if path.suffix == ".json":  # Triton records absolute paths of a kernel's files
                with contextlib.suppress(UnicodeDecodeError):
                    text = path.read_text(encoding="utf-8")
                    temporary.write_text(text.replace(str(source), str(target)), encoding="utf-8")
        count += 1
    return count
