"""Saves from a training loop: at once, or in the background after a copy to host memory."""

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
from progc.ranks.agreeing import apart, raise_together, rank, told

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
    """Writes a checkpoint and returns its folder, which is then complete and on the disk.

    Every rank has to call it. Rank 0 writes, with the random states of all ranks. If tensors are sharded over ranks
    (DTensor), each rank writes its own rows into the same folder, so all ranks need access to it.

    Args:
        run: folder of the run; it is created if it does not exist.
        state: the objects to save.
        step: optimizer steps done.
        epoch, stage: epoch and index of the stage.
        data: position in the data.
        schedule: schedule of the run.
        config: the resolved configuration, plain JSON data.
        run_id: identifier of the run.
        replace: whether an existing checkpoint of this step with other contents may be replaced.

    Raises:
        InputError: the disk refuses, the step exists with other contents, or something in `state` can be saved neither
            as tensor nor as JSON; on every rank.
    """
    facts: dict[str, Any] = {"epoch": epoch, "stage": stage, "data": data, "schedule": schedule, "config": config}
    failed: BaseException | None = None
    folder = None
    try:
        held = snapshot(state, step, run_id=run_id, **facts)
        folder = None if held is None else _write(Path(run), held, replace, None)
    except InputError as error:
        failed = error
    raise_together(failed)
    return Path(told(None if folder is None else str(folder)))


class Saver:
    """Saves in a background thread, and removes old checkpoints there.

        with Saver("runs/one", keep=3) as saver:
            for ...:
                saver.save(state, step, ...)        # returns after the copy to host memory

    At most one save runs at a time: the next one waits for it. An error in the background is raised by the next `save`,
    `wait` or `close`. The host memory of the copies is kept for the next save.

    Attributes:
        stall: seconds for which the last `save` blocked training: waiting for the previous save, and copying.
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
            keep: number of verified checkpoints to keep after each save (`prune`); None keeps all.
            background: False completes every save before it returns.
            tell: called with a message if a checkpoint could not be removed; None issues a warning.

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
        """Saves as the function `save` does, with the same arguments.

        Raises:
            InputError: as for `save`, or the previous save failed (on every rank); then this save was not started.
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
        raise_together(failed)
        self.stall = time.perf_counter() - start

    def wait(self) -> None:
        """Waits until no save is running.

        Raises:
            InputError: a save failed; raised once, on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failed, self._failed = self._failed, None
        raise_together(failed)

    def close(self) -> None:
        """Waits as `wait` does, and frees the memory of the copies."""
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
        elif self._thread is not None:  # let the save finish; the error of the loop is the one to raise
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
    """Writes the checkpoint, and returns its folder on rank 0; every rank writes its shards."""
    if not held.together:
        return write(run, held, replace=replace)
    others = Others(group)
    if rank() == 0:
        return write(run, held, replace=replace, others=others)
    others.take_part(lambda folder: write_part(folder, held))
    return None
