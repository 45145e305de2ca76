"""bench/published.py with formulas for the published side: rows are settled, and a difference is noticed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import published, published_schedules
from bench.published_code import Code
from bench.published_row import Count, Row

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("ramps", "depth_split", "one_shot", "zero_shot", "learning_rate", "resized")
RESULTS = json.loads((ROOT / "bench/results/published.json").read_text("utf-8"))["results"]


def called(monkeypatch: pytest.MonkeyPatch, results: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs the script; returns the rows of its file."""
    for module in (published, sys.modules["bench.common"]):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["published.py", *arguments])
    try:
        published.main()
    finally:
        path = results / "published.json"
        rows = json.loads(path.read_text("utf-8"))["results"]["rows"] if path.is_file() else []
    return list(rows)


def test_formulas_settle_each_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = called(monkeypatch, tmp_path, "--only", *QUICK)
    assert {row["comparison"] for row in rows} == set(QUICK) and len(rows) == 11
    assert all(row["settled"] and row["cases"] and row["published side"] != "published code" for row in rows)
    assert "11 rows, 0 beside published code, 0 without a recorded reason" in capsys.readouterr().out
    again = called(monkeypatch, tmp_path, "--only", "depth_split")
    assert [row["row"] for row in again] == [row["row"] for row in rows]  # other comparisons are kept


@pytest.mark.slow  # minutes: networks are captured, and runs are trained
@pytest.mark.parametrize("name", [name for name in published.COMPARISONS if name not in QUICK])
def test_formulas_settle_each_other_row(name: str) -> None:
    rows = list(published.COMPARISONS[name](Code()))
    assert rows and all(row.settled for row in rows)


def test_a_difference_without_a_reason_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published_schedules, "split", lambda total, full, steps: [total - 1, 1])
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, tmp_path, "--only", "depth_split")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "VOLO depth split, the published depths: differs; 4 of 4 differ" in said
    assert "1 without a recorded reason" in said


def test_verdicts() -> None:
    count = Count(0.1)
    count.near(1.0, 1.05)
    assert count.row("a", "b", "c", "formula").verdict == "equal"
    count.near(float("nan"), 1.0)
    assert count.row("a", "b", "c", "formula").verdict == "differs"
    assert count.row("a", "b", "c", "formula", record=34).verdict == "differs by design (record 34)"
    assert Row("a", "b", "c", "formula", issue=24, absent=True).verdict == "absent (issue 24)"
    assert Row("a", "b", "c", "formula").verdict == "not compared" and not Row("a", "b", "c", "formula").settled


def test_the_record_has_a_reason_for_each_row_that_differs() -> None:
    text = (ROOT / "docs/adr/0034-what-still-differs.md").read_text("utf-8")
    rows = RESULTS["rows"]
    assert {row["comparison"] for row in rows} == set(published.COMPARISONS) and all(row["settled"] for row in rows)
    differing = [row["row"] for row in rows if row.get("record") == 34 and row["differ"]]
    assert differing and all(f"\n| {name} | " in text for name in differing)
    assert text.count("\n| ") == len(differing) + 2  # a head, and no row that has become equal


def test_functions_are_read_out_of_a_checkout(tmp_path: Path) -> None:
    """Its package is `bench`, as one of ours; its script imports what does not exist."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/__init__.py").write_text("")
    (tmp_path / "bench/other.py").write_text(
        "import diffusion\nfrom bench.more import two\nfrom timm.models.registry import register_model\n"
    )
    (tmp_path / "bench/more.py").write_text("def two():\n    return 2\n")
    (tmp_path / "script.py").write_text(
        "import not_there\n\ndef add(x):\n    return x + known\n\ndef main(kind):\n    if kind == 1:\n"
        "        a = known\n        if a > 1:\n            a += 1\n        else:\n            a = 0\n"
        "        b = not_there\n"
    )
    before = dict(sys.modules)
    code = Code()
    assert code.module(tmp_path, "bench.other").two() == 2 and sys.modules["bench"] is before["bench"]
    assert "bench.other" not in sys.modules and "diffusion" not in sys.modules and str(tmp_path) not in sys.path
    assert code.function(tmp_path / "script.py", "add", {"known": 3})(4) == 7
    assert code.statements(tmp_path / "script.py", "main", "kind == 1", {"known": 3})["a"] == 4


def test_a_folder_that_is_no_checkout_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, tmp_path, "--autoprog", str(tmp_path))
    assert ended.value.code == 2 and "is not a checkout of AutoProg: it has no prog/progressive.py" in (
        capsys.readouterr().err
    )
