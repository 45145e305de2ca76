"""Damage to files is noticed, every time, and the checkpoint before is used with a message that names the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from progc.checkpoints import latest, save, verify
from progc.checkpoints.manifest import NAME, sealed, unsealed
from progc.errors import InputError
from tests.checkpoints.faults import DAMAGES, trial
from tests.checkpoints.running import new_state, train
from tests.command import in_process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints that differ."""
    folder, state = tmp_path_factory.mktemp("run"), new_state()
    for step in range(1, 4):
        train(state, 1)
        save(folder, state, step)
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed(kind: str, run: Path) -> None:
    rng = random.Random(f"damage {kind}")
    count = 100 if kind == "bit" else 25
    wrong = [reason for _ in range(count) if (reason := trial(run, kind, rng)) is not None]
    assert not wrong, wrong[:3]
    assert latest(run) == run / "step-00000003"


def test_bits_of_a_manifest_count(run: Path) -> None:
    text = (run / "step-00000003" / NAME).read_bytes()
    for place in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            try:
                unsealed(changed.decode("utf-8"), Path("m"))
            except (InputError, UnicodeDecodeError):
                continue
            pytest.fail(f"bit {bit} of byte {place} does not show")


def test_nothing_good_left_is_an_error_and_not_a_new_start(run: Path, tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None and latest(tmp_path) is None
    folder = save(tmp_path, new_state(), 1)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="1 checkpoints, but none verifies .*model.safetensors has 0 bytes"):
        latest(tmp_path)


def test_a_newer_format_is_not_passed_over(tmp_path: Path) -> None:
    state = new_state()
    save(tmp_path, state, 1)
    newer = save(tmp_path, state, 2) / NAME
    value = unsealed(newer.read_text(), newer)
    newer.write_text(sealed({**value, "version": 2}))
    with pytest.raises(InputError, match="step-00000002/manifest.json: version 2 is newer than 1, .* update progc"):
        latest(tmp_path)


def test_passing_over_is_a_warning_by_default(tmp_path: Path) -> None:
    state = new_state()
    save(tmp_path, state, 1)
    (save(tmp_path, state, 2) / "optimizer.json").unlink()
    with pytest.warns(UserWarning, match="passed over: .*2/optimizer.json is missing; resuming from step-0"):
        assert latest(tmp_path) == tmp_path / "step-00000001"


def test_inspect_shows_facts_or_the_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path, new_state(), 7, stage=2)
    command = in_process(capsys)
    shown = command("inspect", folder)
    assert shown.code == 0 and "stage       2" in shown.out and "model.safetensors" in shown.out
    assert f'"bytes": {verify(folder).size}' in command("inspect", folder, "--json").out
    (folder / "rng-00000.json").write_text("{}")
    refused = command("inspect", folder)
    assert refused.code == 2 and "rng-00000.json has 2 bytes" in refused.err and len(refused.err.splitlines()) == 1
