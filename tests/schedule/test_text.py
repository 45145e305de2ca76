"""Schedules as text: what a terminal shows, as golden files, and the rules behind it."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from progc.errors import InputError
from progc.pipeline.text import parse
from progc.schedule import Point, Unfreeze
from progc.schedule.detail import from_before, of_full, stage_json, stage_text
from progc.schedule.schedule import Schedule
from progc.schedule.stage import bound, per_sample, speedups, time_shares
from progc.schedule.text import LINE, figure, memory, percent, point_columns, schedule_text
from tests.schedule import made

Golden = Callable[[str, str], None]

TEXTS: dict[str, Callable[[], str]] = {
    "plan/grown.txt": lambda: schedule_text(made.grown()),
    "plan/measured.txt": lambda: schedule_text(made.grown((0.1, 0.2, 0.4, 0.8))),
    "plan/without_costs.txt": lambda: schedule_text(made.without_costs()),
    "plan/searched.txt": lambda: schedule_text(made.searched()),
    "plan/stage_of_grown.txt": lambda: stage_text(made.grown((0.1, 0.2, 0.4, 0.8)), 2),
    "plan/stage_of_searched.txt": lambda: stage_text(made.searched(), 1),
}


@pytest.mark.parametrize("path", TEXTS)
def test_text(golden: Golden, path: str) -> None:
    text = TEXTS[path]()
    assert max(map(len, text.splitlines())) <= LINE
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    golden(path, text + "\n")


def test_columns_align() -> None:
    rows = schedule_text(made.grown()).split("\n\n")[1].splitlines()
    ends = [[match.end() for match in re.finditer(r"\S+(?: \S+)*", row)] for row in rows[1:]]
    assert all(row == ends[0] for row in ends)


def test_reading_and_printing_a_plan_imports_no_torch(tmp_path: Path) -> None:
    made.searched().write(tmp_path / "plan.json")
    code = (
        "import sys\nfrom progc.cli import main\n"
        "assert main(['inspect', 'plan.json']) == 0\nassert main(['inspect', 'plan.json', '--json']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


# --- shares and speed-ups -------------------------------------------------------------------------------------------


def test_shares_and_speedups_by_hand() -> None:
    """Seconds 1, 2, 4, 8 in equal stages: 15 parts in all, the full network would take 32."""
    stages = made.grown((1.0, 2.0, 4.0, 8.0)).stages
    shares = time_shares(stages)
    assert shares == pytest.approx((1 / 15, 2 / 15, 4 / 15, 8 / 15))
    assert speedups(stages)["measured"] == pytest.approx(32 / 15)
    work = [depth / 12 * (side / 224) ** 2 for depth, side in ((6, 128), (8, 160), (10, 192), (12, 224))]
    assert speedups(stages)["counted"] == pytest.approx(4 / sum(work), rel=1e-6)
    assert time_shares(stages, "counted") == pytest.approx([part / sum(work) for part in work], rel=1e-6)


def test_a_basis_that_a_stage_lacks_is_left_out() -> None:
    stages = made.grown((1.0, None, 4.0, 8.0)).stages
    assert per_sample(stages, "measured") is None
    assert "measured" not in speedups(stages) and time_shares(stages) == time_shares(stages, "counted")
    assert not speedups(made.without_costs().stages) and time_shares(made.without_costs().stages) is None


def test_no_schedule_is_faster_than_the_bound() -> None:
    for schedule in (made.grown(), made.grown((1e-9, 1e-9, 1e-9, 1.0)), made.searched()):
        assert all(1 <= gain < bound(schedule.stages) for gain in speedups(schedule.stages).values())
    assert bound(made.grown().stages) == 4 and bound(made.searched().stages) == 2


# --- cells ----------------------------------------------------------------------------------------------------------


def test_only_what_varies_has_a_column() -> None:
    names = [name for _, name, _ in point_columns([Point(), Point(widths={"width": 4})])]
    assert names == ["width"]
    assert not point_columns([Point()])
    (column,) = point_columns([Point({"a": 2, "b": 4}), Point({"a": 3, "b": 4})])
    assert column[2] == ["2+4", "3+4"]
    (column,) = point_columns([Point(dict.fromkeys("abcd", 2)), Point(dict.fromkeys("abcd", 3))])
    assert column[2] == ["8", "12"]  # of many chains the sum
    (column,) = point_columns([Point(widths=dict.fromkeys("abcd", 2)), Point(widths=dict.fromkeys("abcd", 8))])
    assert column[2] == ["25 %", "100 %"]


def test_figures() -> None:
    assert [figure(value) for value in (1234.5, 99.96, 12.34, 1.0, 0.01234)] == [
        "1,234",
        "100.0",
        "12.3",
        "1.00",
        "0.0123",
    ]
    assert [percent(value) for value in (1, 0.25, 0.0123, 0)] == ["100 %", "25 %", "1.2 %", "0 %"]
    assert [memory(value) for value in (500, 2048, 3 * 2**20, 2**30)] == ["500 B", "2.00 KiB", "3.00 MiB", "1.00 GiB"]


# --- one stage ------------------------------------------------------------------------------------------------------


def test_passes_of_a_stage_are_pipelines_that_parse() -> None:
    schedule = made.grown()
    texts = [of_full(schedule.stages[0].point), from_before(schedule.stages[2].point, schedule.stages[1].point)]
    assert texts == ["shrink{depth=blocks:6 resolution=128}", "grow-depth{to=blocks:10},grow-resolution{to=192}"]
    assert [len(parse(text)) for text in texts] == [1, 2]
    assert of_full(Point()) == from_before(Point(), Point()) == "nothing"


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("interleave:2/4", "freeze{level=2}"),
        ("prefix:1/4", "freeze{prefix=... stem=true}"),  # how many blocks that is, only the network tells
        ("suffix:1/4", "freeze{suffix=...}"),
    ],
)
def test_passes_that_freeze(text: str, passes: str) -> None:
    assert of_full(Point(unfreeze=Unfreeze.parse(text))) == passes


def test_a_stage_that_is_not_there() -> None:
    for index in (-1, 4):
        with pytest.raises(InputError, match=f"there is no stage {index}; the plan has stages 0 to 3"):
            stage_text(made.grown(), index)
    with pytest.raises(InputError, match="stage 0 only"):
        stage_json(_one_stage(), 1)


def _one_stage() -> Schedule:
    schedule = made.grown()
    return dataclasses.replace(schedule, stages=(dataclasses.replace(schedule.stages[0], share=1.0),))


def test_one_stage_only_is_printed_too() -> None:
    text = schedule_text(_one_stage())
    assert "1 stage," in text and "bound" not in text
    assert math.isclose(bound(_one_stage().stages), 1)
