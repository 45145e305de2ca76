"""The scripts of bench/ start: their help and lists work, and their reports are made of their results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "analysis",
    "anchor",
    "checkpoint_faults",
    "checkpoints",
    "cost",
    "coverage",
    "freeze",
    "grow",
    "hostile",
    "kill",
    "one_shot",
    "pairs",
    "plan",
    "properties",
    "proxies",
    "step_time",
    "trainer",
    "zero_shot",
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_measured(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python bench/{script}.py" in done.stdout


@pytest.mark.parametrize("script", ["anchor", "cost"])
def test_an_unknown_model_is_wrong_use(script: str) -> None:
    listed = run(script, "--list").stdout.split()
    assert len(listed) == len(set(listed)) > 10
    done = run(script, "no_such_model")
    assert done.returncode == 2 and "unknown model no_such_model" in done.stderr


def test_slopes_are_those_of_powers() -> None:
    code = (
        "from bench.cost import slope\n"
        "rows = [{'nodes': n, 'seconds': {'axes': 3 * n**1.5, 'chains': 0.0}} for n in (10, 20, 50)]\n"
        "assert abs(slope(rows, 'nodes', ('axes', 'chains')) - 1.5) < 1e-9\n"
        "assert slope(rows[:2], 'nodes', ('axes',)) is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_rank_correlation_is_spearmans() -> None:
    code = (
        "from bench.plan import spearman\n"
        "assert abs(spearman([1, 2, 3, 4], [10, 20, 30, 999]) - 1) < 1e-12\n"
        "assert abs(spearman([1, 2, 3, 4], [4, 3, 2, 1]) + 1) < 1e-12\n"
        "assert abs(spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) - 0.8) < 1e-12\n"
        "assert abs(spearman([1, 2, 2, 3], [1, 2, 2, 3]) - 1) < 1e-12\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
