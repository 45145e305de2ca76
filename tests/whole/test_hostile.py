"""Files made to do harm, against every command that reads: refused in one line, with nothing run and nothing written.

A part of what bench/hostile.py runs; checkpoints have tests of their own (tests/checkpoints/test_hostile.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest

from progc.cli import main
from progc.schedule import Schedule
from progc.train import metrics
from progc.train.metrics import Metrics
from tests.hostile_files import MARKER, PLACES, TEXTS, Case, bomb, cases, holding, listing, trial, watched
from tests.sweeps import some
from tests.train.running import schedule

SKIPPED = ("inspect transformers", "grow diffusers", "train --plan", "grow --ema")
"""Slow, or read by what another command reads with."""
CASES = [case for case in cases() if not case[1].endswith(SKIPPED)]


@pytest.mark.parametrize("part", range(4))
def test_hostile_files(part: int, tmp_path: Path) -> None:
    found = [trial(case, tmp_path / str(number)) for number, case in enumerate(CASES[part::4])]
    assert [text for text in found if text is not None] == []


def test_the_watch_can_fail(tmp_path: Path) -> None:
    fine = holding("x: 1")
    case: Case = ("x.yaml", "help", fine, lambda file: ["--version"])
    assert trial(case, tmp_path / "a") is not None
    (tmp_path / "b").mkdir()
    text = f"open({str(tmp_path / 'b' / 'pwned')!r}, 'w')\nraise SystemExit\n"
    (tmp_path / "c.py").write_text(text)
    assert watched(["inspect", str(tmp_path / "c.py")], tmp_path / "b") == "something was written"


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_metrics_that_lead_elsewhere(kind: str, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("kept")
    (os.mkfifo(run / metrics.FILE) if kind == "pipe" else (run / metrics.FILE).symlink_to(outside))
    with pytest.raises(metrics.InputError, match="cannot be written"):
        Metrics(run)
    assert outside.read_text() == "kept"


def test_metrics_of_any_content(tmp_path: Path) -> None:
    """Damaged lines are left out; the run resumes in every case."""
    rng = random.Random(0)
    lines = [b'{"kind": "train", "step": %d, "measured": {"seconds": %d}}' % (k, k) for k in range(4)]
    lines += [b"[" * 100_000, b'{"step": 1, "measured": [1]}', b'{"step": 1, "measured": {"seconds": 1e999}}', b"\xff"]
    lines += [b'{"step": 1, "measured": {"seconds": ' + b"9" * 4000 + b"}}", b'{"step": 9, "kind": "boundary"}']
    lines += [b'{"step": 2, "kind": "boundary", "stage": "x"}', b'{"step": 2, "kind": "boundary", "stage": null}']
    lines += [bomb(tmp_path / "x" / "y")]
    whole = b"\n".join(lines)
    for number in range(100):
        data = bytearray(whole)
        for _ in range(number):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / metrics.FILE).write_bytes(bytes(data))
        log = Metrics(tmp_path)
        log.cut(3, 1)
        log.write("train", 4, {"loss": 1.0})
        log.close()
        assert log.seconds < metrics.LONGEST * 2
    assert set(listing(tmp_path)) == {metrics.FILE}


@pytest.mark.parametrize("name", ["x.toml", "x.yaml", "x.json", "plan.json"])
def test_bits_of_configs_and_plans(name: str, tmp_path: Path) -> None:
    """Any flipped bits: read, or refused in one line; no other error."""
    rng = random.Random(1)
    texts = {
        "x.toml": 'source = "net.py"\nepochs = 4\n[train]\nbatch = 8\nema = [0.9]\nlr = 1e-3\n[plan]\nstages = 2\n',
        "x.yaml": "source: net.py\nepochs: 4\ntrain:\n  batch: 8\n  ema: [0.9]\n  lr: 1e-3\nplan: {stages: 2}\n",
        "x.json": '{"source": "net.py", "epochs": 4, "train": {"batch": 8, "ema": [0.9]}, "plan": {"stages": 2}}',
    }
    path = tmp_path / name
    if name == "plan.json":
        schedule().write(path)
        assert Schedule.read(path).to_json() == schedule().to_json()
    data = texts[name].encode() if name in texts else path.read_bytes()
    for number in range(60):
        flipped = bytearray(data)
        for _ in range(1 + number % 4):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
        command = ["inspect", str(path)] if name == "plan.json" else ["train", str(path), "--dry-run"]
        assert watched(command, tmp_path) in (None, "exit code 0"), flipped


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that ended well."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--out", str(run)]) == 0
    return run


ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    "train", str(ROOT / "examples" / "digits_vit.py"), "--stages", "1", "--steps", "2", "--batch", "8",
    "--set", "train.compile=eager", "--set", "plan.resolutions=none",
]  # fmt: skip
IN_RUN = ("config.json", "run.json", "plan.json", "metrics.jsonl", ".lock", "step-00000002/manifest.json")
IN_RUN += ("step-00000002/training.json", "step-00000002/model.safetensors", "step-00000002/.metadata")


@pytest.mark.parametrize("name", some(IN_RUN, ["plan.json", "step-00000002/training.json"]))
def test_a_run_is_gone_on_with_or_refused(name: str, trained: Path, tmp_path: Path) -> None:
    """The same command again, with one file of its folder replaced: no traceback, nothing outside is touched."""
    kinds = {kind: PLACES[kind] for kind in ("pipe", "torch pickle")}
    for number, (kind, make) in enumerate({**kinds, "deep": TEXTS["deep list"]}.items()):
        outside = tmp_path / str(number)
        run = outside / "above" / "run"
        shutil.copytree(trained, run)
        (run / name).unlink(missing_ok=True)
        make(run / name)
        (outside / "kept").write_text("kept")
        out = StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([*TRAIN, "--out", str(run)])
        text = out.getvalue()
        assert "Traceback" not in text and "internal error" not in text, (kind, text)
        assert code in (0, 2) and (code == 0 or text.count("progc: error: ") == 1), (kind, text)
        left = {path.name for path in outside.rglob("*") if run not in path.parents}
        assert left == {"kept", "above", "run"} and not (run / MARKER).exists(), kind
        shutil.rmtree(outside)
