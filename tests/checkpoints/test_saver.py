"""Saving in the background: a true copy, one at a time, and no failure goes unseen."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from progc.checkpoints import Saver, State, latest, load, writing
from progc.errors import InputError
from tests.checkpoints.running import everything, new_state, same, train


def test_training_goes_on_while_the_state_of_that_moment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), os.fsync
    monkeypatch.setattr(writing.os, "fsync", lambda descriptor: (gate.wait(), real(descriptor)))
    state = new_state()
    with Saver(tmp_path) as saver:
        train(state, 1)
        saved = everything(state)
        saver.save(state, 1)
        assert latest(tmp_path) is None
        train(state, 2)
        gate.set()
        saver.wait()
        assert saver.stall >= 0
        again = new_state(seed=3)
        load(tmp_path / "step-00000001").restore(again)
        assert same(everything(again), saved)
        saver.save(state, 3)  # into the memory of the first copy
    load(tmp_path / "step-00000003").restore(again)
    assert same(everything(again)["model"], everything(state)["model"])


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_said_and_leaves_the_older_one(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(nn.Linear(2, 2))
    saver = Saver(tmp_path, background=background)
    saver.save(state, 1)
    saver.wait()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", full)
        message = "step-00000002 cannot be written: No space left on device; free space"
        if background:
            saver.save(state, 2)
            with pytest.raises(InputError, match=message):
                saver.save(state, 3)  # which is not begun
        else:
            with pytest.raises(InputError, match=message):
                saver.save(state, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    saver.save(state, 4)
    saver.close()
    assert latest(tmp_path) == tmp_path / "step-00000004"


def test_a_failure_surfaces_at_close_at_the_latest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saver = Saver(tmp_path / "file" / "run")
    saver.save(State(nn.Linear(2, 2)), 1)
    with pytest.raises(InputError, match="cannot be written"):
        saver.close()
    saver.close()  # said once


def test_an_error_of_the_loop_is_not_hidden_and_the_save_is_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Saver(tmp_path) as saver:
        saver.save(State(nn.Linear(2, 2)), 1)
        raise KeyError
    assert latest(tmp_path) == tmp_path / "step-00000001"


def test_old_ones_are_removed_in_the_background(tmp_path: Path) -> None:
    state = State(nn.Linear(2, 2))
    with Saver(tmp_path, keep=2) as saver:
        for step in range(5):
            saver.save(state, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    with pytest.raises(InputError, match="keep 0"):
        Saver(tmp_path, keep=0)


def test_what_cannot_be_saved_is_said_at_once(tmp_path: Path) -> None:
    odd: Any = object()
    with Saver(tmp_path) as saver:
        with pytest.raises(InputError, match="config cannot be saved as JSON"):
            saver.save(State(nn.Linear(2, 2)), 1, config={"a": odd})
        saver.save(State(nn.Linear(2, 2).to(torch.bfloat16)), 1)
    assert latest(tmp_path) is not None
