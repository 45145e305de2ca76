"""The next stage compiled while the present one trains, in a process and a cache folder of its own.

When that process has compiled everything, its folder is merged into the one that this process uses: file by file, each
written whole under another name and then renamed. A compilation that was killed or failed leaves nothing but its own
folder, which goes; the stage is then compiled in place, as without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch

from progc.emit import known
from progc.emit.specs import arguments, region_to_json
from progc.emit.stage_module import StageModule, calls, settings
from progc.files.writing import replacing, write_json
from progc.ir.program import Mode, Program


@dataclasses.dataclass
class Ahead:
    """A compilation under way.

    Attributes:
        folder: its own: recipe, log and cache.
        process: None where there is nothing to compile.
        regions: how many regions it compiles.
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
        """Whether it still compiles."""
        return self.process is not None and self.process.poll() is None

    def finish(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits, merges what was compiled, and removes the folder.

        Args:
            stop: asked while it waits; once it says so nothing is waited for any more.

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
            known.write(self.notes)
        self.cancel()
        return done

    def cancel(self) -> None:
        """Ends the process, if it still runs, and removes its folder."""
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
    """Starts compiling what `module`, emitted of `program`, will need, and returns at once.

    Args:
        args, kwargs: inputs at the size of training; only shapes, dtypes and devices matter.
        modes: the graphs to compile.
        autocast: dtype of mixed precision, if training uses it.
        device: where training runs; None: where the program's tensors are.
        nice, threads: how much of the machine the process may take from the training that goes on.
    """
    recipe, left = _recipe(program, module, args, kwargs or {}, modes, autocast, device)
    places = known.notes(cache_folder(), recipe)
    missing = [k for k, place in enumerate(places) if not place.exists()]
    folder = Path(tempfile.mkdtemp(prefix="progc-compile-"))
    if not missing:
        return Ahead(folder, None, 0, left, time.monotonic())
    recipe = {**recipe, "regions": [recipe["regions"][k] for k in missing], "nice": nice, "threads": threads}
    write_json(folder / "recipe.json", recipe)
    (folder / "cache").mkdir()
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_CACHE_DIR", None)  # follows Inductor's
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "progc.emit.compile_child", str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for the training; what ends it ends this by `cancel`
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
    """Notes that this process has compiled what `module` needs, forwards and backwards: it is in the cache.

    Args: as for `compile_ahead`.
    """
    recipe, _ = _recipe(program, module, args, kwargs, modes, autocast, device)
    known.write(known.notes(cache_folder(), recipe))


def _recipe(
    program: Program,
    module: StageModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    modes: tuple[Mode, ...],
    autocast: torch.dtype | None,
    device: torch.device | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What it takes to compile the regions elsewhere, and keys of those that can only be compiled in place."""
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
    """Plain settings of Inductor in this process: what is compiled under others is not found in the cache."""
    from torch._inductor import config

    values: dict[str, Any] = config.get_config_copy()
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


def cache_folder() -> Path:
    """Where Inductor of this process keeps what it compiled."""
    from torch._inductor.codecache import cache_dir

    return Path(cache_dir())


def merge(source: Path, target: Path) -> int:
    """Puts files of one cache folder into another that does not have them; returns how many."""
    count = 0
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_symlink() or not path.is_file() or path.suffix == ".lock" or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place, durable=False) as temporary:
            shutil.copy2(path, temporary)
            if path.suffix == ".json":  # Triton notes where the files of a kernel are
                with contextlib.suppress(UnicodeDecodeError):
                    text = path.read_text(encoding="utf-8")
                    temporary.write_text(text.replace(str(source), str(target)), encoding="utf-8")
        count += 1
    return count
