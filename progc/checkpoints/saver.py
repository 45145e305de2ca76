"""Saving from a training loop: at once, or in the background after a copy to host memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from progc.checkpoints.keeping import prune
from progc.checkpoints.searching import Tell
from progc.checkpoints.sharded import Others
from progc.checkpoints.state import Buffers, Snapshot, State, snapshot
from progc.checkpoints.writing import clean, write, write_part
from progc.data.order import DataPosition
from progc.errors import InputError
from progc.ranks.gathering import agreed, apart, rank, told

if TYPE_CHECKING:
    from progc.schedule import Schedule


def save(
    run: str | Path,
    state: State,
    step: int,
    *,
    epoch: int = 0,
    stage: int = 0,
    data: DataPosition | None = None,
    schedule: Schedule | None = None,
    config: Mapping[str, Any] | None = None,
    run_id: str = "",
    replace: bool = False,
) -> Path:
    """Writes a checkpoint and returns its folder, which is complete and on the disk then.

    Every rank calls it; rank 0 writes, with the random numbers of all. Where tensors are spread over ranks (DTensor),
    each writes its own rows, into the same folder: all ranks have to see it.

    Args:
        run: folder of the run, made if it is not there.
        step: optimizer steps done.
        epoch, stage: where the run is.
        data: position in the data.
        schedule: of the run.
        config: the resolved configuration, plain JSON data.
        run_id: of the run.
        replace: whether a whole checkpoint of this step with other contents may be replaced.

    Raises:
        InputError: the disk refuses, the step is there already with other contents, or something in `state` can be
            neither tensor nor JSON. On every rank.
    """
    facts: dict[str, Any] = {"epoch": epoch, "stage": stage, "data": data, "schedule": schedule, "config": config}
    failed: BaseException | None = None
    folder = None
    try:
        held = snapshot(state, step, run_id=run_id, **facts)
        folder = None if held is None else _write(Path(run), held, replace, None)
    except InputError as error:
        failed = error
    agreed(failed)
    return Path(told(None if folder is None else str(folder)))


class Saver:
    """Saves in a thread, and removes old checkpoints there.

        with Saver("runs/one", keep=3) as saver:
            for ...:
                saver.save(state, step, ...)        # returns after the copy to host memory

    At most one save is under way: the next one waits for it. What went wrong in the background is raised by the next
    `save`, `wait` or `close`. The host memory of the copies is kept for the next save.

    Attributes:
        stall: seconds for which the last `save` held up training: waiting for the one before, and copying.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        keep: int | None = None,
        background: bool = True,
        tell: Tell | None = None,
    ) -> None:
        """
        Args:
            run: folder of the run.
            keep: how many checkpoints that verify stay after each save (`prune`); None: all.
            background: False: every save is complete when it returns.
            tell: is given a message where something had to be left alone; None: it becomes a warning.

        Raises:
            InputError: `keep` is below 1.
        """
        if keep is not None and keep < 1:
            raise InputError(f"keep {keep}: expected 1 or more checkpoints")
        self.run, self.keep, self.background, self.tell = Path(run), keep, background, tell
        self.stall = 0.0
        self._buffers = Buffers()
        self._thread: threading.Thread | None = None
        self._group: Any = None
        self._failed: BaseException | None = None
        if rank() == 0:
            clean(self.run)

    def save(self, state: State, step: int, *, replace: bool = False, **facts: Any) -> None:
        """As the function `save`, with its arguments.

        Raises:
            InputError: as there; or the save before failed, which is said on every rank, and this one was not begun.
        """
        start = time.perf_counter()
        self.wait()
        failed: BaseException | None = None
        try:
            held = snapshot(state, step, **facts)
            if held is not None and held.together and self._group is None:
                self._group = apart()
            if held is not None and self.background:
                self._thread = threading.Thread(
                    target=self._work, args=(held.moved(self._buffers), replace), name="checkpoint"
                )
                self._thread.start()
            elif held is not None:
                self._write(held, replace)
        except InputError as error:
            failed = error
        agreed(failed)
        self.stall = time.perf_counter() - start

    def wait(self) -> None:
        """Returns when nothing is under way.

        Raises:
            InputError: a save failed; once, on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failed, self._failed = self._failed, None
        agreed(failed)

    def close(self) -> None:
        """As `wait`, and lets go of the memory."""
        try:
            self.wait()
        finally:
            self._buffers = Buffers()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._thread is not None:  # finish what is under way; what went wrong in the loop is the news
            self._thread.join()

    def _work(self, held: Snapshot, replace: bool) -> None:
        try:
            self._write(held, replace)
        except BaseException as error:  # raised in the training loop by `wait`
            self._failed = error

    def _write(self, held: Snapshot, replace: bool) -> None:
        _write(self.run, held, replace, self._group)
        if self.keep is not None and rank() == 0:
            prune(self.run, keep=self.keep, tell=self.tell)


def _write(run: Path, held: Snapshot, replace: bool, group: Any) -> Path | None:
    """The folder, on rank 0; every rank that has a part of what is spread writes it."""
    if not held.together:
        return write(run, held, replace=replace)
    others = Others(group)
    if rank() == 0:
        return write(run, held, replace=replace, others=others)
    others.take_part(lambda folder: write_part(folder, held))
    return None
