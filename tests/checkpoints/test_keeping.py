"""What stays in a run: only what verifies counts, and the best one is never removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from progc.checkpoints import State, best, latest, mark_best, prune, save
from progc.errors import InputError


def run_of(folder: Path, steps: int) -> State:
    state = State(nn.Linear(2, 2))
    for step in range(1, steps + 1):
        save(folder, state, step)
    return state


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def broken(folder: Path, step: int) -> None:
    (folder / f"step-{step:08d}" / "model.safetensors").write_bytes(b"x")


def test_the_newest_stay(tmp_path: Path) -> None:
    run_of(tmp_path, 5)
    done = prune(tmp_path, keep=2)
    assert steps_in(tmp_path) == [4, 5] and done.kept == ("step-00000005", "step-00000004")
    assert len(done.removed) == 3 and not done.broken
    with pytest.raises(InputError, match="keep 0"):
        prune(tmp_path, keep=0)


def test_broken_ones_do_not_count_and_stay(tmp_path: Path) -> None:
    run_of(tmp_path, 6)
    for step in (2, 4, 5, 6):
        broken(tmp_path, step)
    done = prune(tmp_path, keep=1)
    assert steps_in(tmp_path) == [2, 3, 4, 5, 6] and done.kept == ("step-00000003",)
    assert done.broken == tuple(f"step-0000000{step}" for step in (6, 5, 4, 2))
    assert latest(tmp_path, tell=lambda _: None) == tmp_path / "step-00000003"


def test_the_last_good_one_is_never_removed(tmp_path: Path) -> None:
    run_of(tmp_path, 1)
    for _ in range(3):
        assert prune(tmp_path, keep=1).kept == ("step-00000001",)


def test_the_best_one_stays_beside_the_newest(tmp_path: Path) -> None:
    assert best(tmp_path) is None
    state = run_of(tmp_path, 4)
    mark_best(tmp_path, 2, metric=0.75)
    prune(tmp_path, keep=1)
    assert steps_in(tmp_path) == [2, 4] and best(tmp_path) == tmp_path / "step-00000002"
    mark_best(tmp_path, 4)
    save(tmp_path, state, 5)
    prune(tmp_path, keep=1)
    assert steps_in(tmp_path) == [4, 5]


def test_a_broken_mark_stops_removal(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    mark_best(tmp_path, 1)
    text = (tmp_path / "best.json").read_text()
    (tmp_path / "best.json").write_text(text.replace('"step": 1', '"step": 2'))
    with pytest.warns(UserWarning, match="no checkpoint was removed, since the best one is unknown"):
        prune(tmp_path, keep=1)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_only_a_whole_checkpoint_can_be_best(tmp_path: Path) -> None:
    state = run_of(tmp_path, 1)
    mark_best(tmp_path, 1)
    broken(tmp_path, 1)
    with pytest.raises(InputError, match="model.safetensors has 1 bytes"):
        best(tmp_path)
    with pytest.raises(InputError, match="model.safetensors has 1 bytes"):
        mark_best(tmp_path, 1)
    torch.nn.init.zeros_(state.model.weight)  # type: ignore
    save(tmp_path, state, 1)  # another checkpoint of that step, since the first is broken
    with pytest.raises(InputError, match="is not the checkpoint that was marked as best"):
        best(tmp_path)


def test_a_step_is_never_overwritten(tmp_path: Path) -> None:
    state = run_of(tmp_path, 2)
    before = (tmp_path / "step-00000002" / "manifest.json").read_bytes()
    save(tmp_path, state, 2)  # the same contents
    assert (tmp_path / "step-00000002" / "manifest.json").read_bytes() == before
    torch.nn.init.zeros_(state.model.weight)  # type: ignore
    with pytest.raises(InputError, match="step-00000002 already exists with other contents"):
        save(tmp_path, state, 2)
    assert (tmp_path / "step-00000002" / "manifest.json").read_bytes() == before
    save(tmp_path, state, 2, replace=True)
    assert (tmp_path / "step-00000002" / "manifest.json").read_bytes() != before
    broken(tmp_path, 2)
    save(tmp_path, state, 2)
    aside = [path.name for path in tmp_path.glob("broken-*")]
    assert len(aside) == 1 and latest(tmp_path) == tmp_path / "step-00000002"
    assert not list(tmp_path.glob(".*"))
