"""Epochs, steps and samples of a run whose stages have batches of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.data.order import Batches
from progc.errors import InputError
from progc.schedule.controlling import Ended
from progc.schedule.pace import Pace
from progc.schedule.stage_shares import batches_from_text

UNITS = st.sampled_from(["epochs", "steps"])
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def paced(batches: list[int], samples: int, unit: str, lengths: list[int]) -> Pace:
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    return Pace(batches, samples, unit, starts, sum(lengths))


@given(batch=st.integers(1, 20), more=st.integers(0, 50), unit=UNITS, lengths=LENGTHS)
def test_with_one_batch_everything_is_counted_by_steps(batch: int, more: int, unit: str, lengths: list[int]) -> None:
    samples = batch + more
    pace, per_epoch = paced([batch] * len(lengths), samples, unit, lengths), samples // batch
    per_unit = per_epoch if unit == "epochs" else 1
    assert pace.ruler == per_unit and pace.total == sum(lengths) * per_unit
    for stage, steps in enumerate(pace.steps):
        assert steps == lengths[stage] * per_unit and pace.stride(stage) == 1
        for step in range(pace.start(stage), pace.start(stage) + steps + 1):
            epoch, place = divmod(step, per_epoch)
            assert pace.position(stage, step) == (epoch, place * batch) and pace.mark(stage, step) == step
            assert pace.unit(stage, step) == (None if step % per_unit else step // per_unit)


@given(data=st.data(), samples=st.integers(8, 40), unit=UNITS, lengths=LENGTHS)
def test_no_sample_is_used_twice_in_an_epoch(data: st.DataObject, samples: int, unit: str, lengths: list[int]) -> None:
    """Walks through a run as a trainer does; it resumes at every step, so that each asks for its position."""
    batches = [data.draw(st.integers(1, samples)) for _ in lengths]
    pace = paced(batches, samples, unit, lengths)
    used: dict[int, set[int]] = {}
    for stage, steps in enumerate(pace.steps):
        for step in range(pace.start(stage), pace.start(stage) + steps):
            epoch, index = pace.position(stage, step)
            batch = next(iter(Batches(samples, batches[stage], 0, epoch, start=index)))
            new = {place for _, place in batch}
            assert len(batch) == batches[stage] and not new & used.setdefault(epoch, set())
            used[epoch] |= new
    assert list(used) == list(range(len(used)))  # no epoch is left out
    if unit == "epochs":
        assert len(used) == sum(lengths)
    for epoch, places in used.items():  # only what does not fill a batch of the stage is left over
        if epoch + 1 < len(used):
            assert samples - len(places) < max(batches)


def test_stages_of_steps_continue_in_the_middle_of_an_epoch() -> None:
    pace = paced([8, 4, 16], 40, "steps", [2, 7, 3])
    assert pace.position(0, 2) == (0, 16) == pace.position(1, 2)
    assert pace.position(1, 8) == (1, 0)  # 6 batches of 4 were left
    # The last epoch of stage 1 has 36 samples left, two batches of 16.
    assert [pace.position(2, 9 + k) for k in range(4)] == [(1, 4), (1, 20), (2, 0), (2, 16)]
    assert pace.per_epoch == (5, 10, 2) and pace.per_unit == (1, 1, 1) and pace.steps == (2, 7, 3)


def test_the_next_epoch_begins_where_a_batch_is_no_longer_left() -> None:
    pace = paced([8, 16], 40, "steps", [4, 3])
    assert pace.position(0, 4) == (0, 32) and pace.position(1, 4) == (1, 0)


def test_stages_of_epochs_have_as_many_steps_as_their_batch_allows() -> None:
    pace = paced([20, 8, 5], 40, "epochs", [2, 1, 3])
    assert pace.steps == (4, 5, 24) and pace.total == 33
    assert [pace.start(stage) for stage in range(3)] == [0, 4, 9]
    assert (pace.unit(1, 9), pace.unit(2, 9), pace.unit(1, 8), pace.unit(2, 17)) == (3, 3, None, 4)
    assert pace.step(2, 6) == 33 and pace.position(2, 18) == (4, 5)
    # 8 marks an epoch, as many as the smallest batch has steps.
    assert [pace.stride(stage) for stage in range(3)] == [4.0, 1.6, 1.0]
    assert [pace.mark(0, 2), pace.mark(1, 4), pace.mark(2, 9), pace.mark(2, 33)] == [8.0, 16.0, 24.0, 48.0]


def test_rules_move_what_follows() -> None:
    pace = paced([20, 8, 5], 40, "epochs", [2, 2, 2])
    pace.follow([Ended(0, 1, 2, "over")])
    assert pace.steps == (2, 15, 16) and pace.start(1) == 2 and pace.unit(1, 7) == 2
    late = paced([20, 8, 5], 40, "epochs", [2, 2, 2])
    late.follow([Ended(0, 3, 2, "late"), Ended(1, 5, 4, "late"), Ended(2, 6, 6, "the run is over")])
    assert late.steps == (6, 10, 8) and late.position(2, 16) == (5, 0)


def test_a_batch_is_no_larger_than_the_samples() -> None:
    with pytest.raises(InputError, match="expected at least a batch of 64 samples for stage 1, got 40; use a smaller"):
        paced([8, 64], 40, "steps", [1, 1])
    with pytest.raises(InputError, match="expected at least a batch of 64 samples, got 40"):
        paced([64], 40, "steps", [1])


def test_batches_on_the_command_line() -> None:
    assert batches_from_text(None) is None and batches_from_text("256, 128,64") == [256, 128, 64]
    for text in ("", "256,", "1.5", "0,2", "-4", "2;3", "²"):
        with pytest.raises(InputError, match=f"--stage-batch {text}: expected an integer of at least 1 for each stage"):
            batches_from_text(text)
