"""The scripts of bench/ start: their help and lists work, and their reports are made of their results."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "ArgumentParser(" in path.read_text("utf-8"))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script as users start it: a process, whose import path holds bench/ and not the root."""
    command = [sys.executable, str(ROOT / "bench" / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)


def test_every_script_is_found() -> None:
    assert {"anchor", "cost", "coverage", "kill", "pairs", "plan", "trainer"} <= set(SCRIPTS) and len(SCRIPTS) > 15


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_measured(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; `test_a_script_starts_as_a_file` runs one in a process, and the slow test all of them."""
    monkeypatch.setattr(sys, "argv", [f"bench/{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{script}").main()
    assert ended.value.code == 0 and f"python bench/{script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_the_root_before_it_imports(script: str) -> None:
    """Started as a file it has bench/ on its path: the root is put there before anything of it is imported."""
    lines = (ROOT / "bench" / f"{script}.py").read_text("utf-8").splitlines()
    added = [number for number, line in enumerate(lines) if line.lstrip().startswith("sys.path.insert(0, str(")]
    needed = [
        number for number, line in enumerate(lines) if line.startswith(("from bench", "from tests", "import bench"))
    ]
    assert not needed or (added and added[0] < needed[0])
    assert 'if __name__ == "__main__":' in lines


def test_a_script_starts_as_a_file() -> None:
    done = run("anchor", "no_such_model")
    assert done.returncode == 2 and "unknown model no_such_model" in done.stderr


@pytest.mark.slow  # a process of two to five seconds for each script
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_process(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0 and f"python bench/{script}.py" in done.stdout, done.stderr


@pytest.mark.parametrize("script", ["anchor", "cost"])
def test_an_unknown_model_is_wrong_use(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"bench.{script}").main
    monkeypatch.setattr(sys, "argv", [f"bench/{script}.py", "--list"])
    main()
    listed = capsys.readouterr().out.split()
    assert len(listed) == len(set(listed)) > 10
    monkeypatch.setattr(sys, "argv", [f"bench/{script}.py", "no_such_model"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "unknown model no_such_model" in capsys.readouterr().err


def test_slopes_are_those_of_powers() -> None:
    from bench.cost_report import slope

    rows = [{"nodes": n, "seconds": {"axes": 3 * n**1.5, "chains": 0.0}} for n in (10, 20, 50)]
    assert slope(rows, "nodes", ("axes", "chains")) == pytest.approx(1.5)
    assert slope(rows[:2], "nodes", ("axes",)) is None


def test_rank_correlation_is_spearmans() -> None:
    from bench.plan import spearman

    assert spearman([1, 2, 3, 4], [10, 20, 30, 999]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)


def test_the_overhead_of_pairs_has_an_interval() -> None:
    """Order statistics by the sign test: of 10 pairs, the second and the ninth; of few pairs all of them."""
    from bench.trainer import paired

    bare = [100.0] * 10
    assert paired([100.0 + step for step in range(10)], bare) == {"median": 4.5, "low": 1.0, "high": 8.0}
    assert paired([101.0, 99.0, 100.0], bare[:3]) == {"median": 0.0, "low": -1.0, "high": 1.0}
    slow = [100.0, 200.0] * 5  # a machine that changes its speed changes nothing
    assert paired([1.01 * value for value in slow], slow)["median"] == 1.0
