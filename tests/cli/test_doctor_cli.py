"""`progc doctor`: a line for each check, and exit code 1 where something is broken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import progc.emit.canary
from progc.errors import CheckError
from progc.runs import doctor
from tests.command import Command, in_process

NAMES = ["versions", "devices", "threads", "compiler", "disk", "processes", "extras"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Without the compiler's canary, which tests/emit/ runs."""
    monkeypatch.setattr(progc.emit.canary, "check_compiler", lambda device="cpu", **options: None)
    monkeypatch.setattr(doctor, "WRITTEN", 1 << 20)
    return in_process(capsys)


def test_every_check_is_a_line(run: Command, tmp_path: Path) -> None:
    outcome = run("doctor", "--folder", tmp_path / "not" / "there")
    assert outcome.code == 0, outcome.out
    lines = outcome.out.splitlines()
    assert [line.split()[1] for line in lines[: len(NAMES)]] == NAMES
    assert lines[-1] == "this machine can train"
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[0]
    assert re.search(rf"{tmp_path}: \d+ MB/s with fsync, [\d.]+ ms for an fsync", lines[4])
    assert not list(tmp_path.iterdir())


def test_as_json(run: Command, tmp_path: Path) -> None:
    outcome = run("doctor", "--json", "--folder", tmp_path)
    content = json.loads(outcome.out)
    assert [check["name"] for check in content["checks"]] == NAMES and content["broken"] == []
    assert {check["state"] for check in content["checks"]} <= {"ok", "note"}


def test_wrong_gradients_are_broken(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(device: str = "cpu", **options: object) -> None:
        raise CheckError("torch.compile gives wrong gradients here")

    monkeypatch.setattr(progc.emit.canary, "check_compiler", wrong)
    outcome = run("doctor", "--folder", tmp_path)
    assert outcome.code == 1 and outcome.out.splitlines()[-1] == "broken: compiler"
    assert "wrong gradients here; with progc train: --set train.compile=eager" in outcome.out


def test_a_check_that_fails_is_a_finding(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(device: str = "cpu", **options: object) -> None:
        raise RuntimeError("no C++\ncompiler")

    def no_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    def no_threads() -> int:
        raise ValueError("odd")

    monkeypatch.setattr(progc.emit.canary, "check_compiler", no_compiler)
    monkeypatch.setattr("os.fsync", no_disk)
    monkeypatch.setattr("torch.get_num_threads", no_threads)
    outcome = run("doctor", "--folder", tmp_path)
    assert outcome.code == 1 and outcome.out.splitlines()[-1] == "broken: threads, compiler, disk"
    assert "torch.compile fails on cpu (RuntimeError: no C++ compiler)" in outcome.out
    assert "cannot be written: No space left on device" in outcome.out and "ValueError: odd" in outcome.out


def test_an_old_torch_and_too_many_threads(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.9.1+cpu")
    monkeypatch.setattr("torch.get_num_threads", lambda: 4096)
    checks = {check.name: check for check in doctor.checks(tmp_path)}
    assert checks["versions"].state == "broken" and "torch 2.11 or newer is needed" in checks["versions"].text
    assert checks["threads"].state == "note" and "set OMP_NUM_THREADS" in checks["threads"].text
