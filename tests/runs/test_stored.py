"""A run on disk: which of its weights are found, whatever state the run is in, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from progc.errors import InputError
from progc.runs.folder import is_run
from progc.runs.stored import StoredRun
from tests.stored_runs import DECAYS, STEPS, damage, unfinished


def test_a_finished_run_has_the_weights_of_its_last_stage(trained_run: Path) -> None:
    run = StoredRun.open(trained_run)
    assert run.finished and run.newest_stage() == 1
    for found in (run.weights(), run.weights(1)):
        assert (found.path.name, found.stage, found.step, found.decays) == ("model.safetensors", 1, STEPS, DECAYS)
    tensors = found.tensors()
    expected = load_file(trained_run / "model.safetensors")
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    average = found.tensors(0.9)
    assert torch.equal(average["head.weight"], load_file(trained_run / "model-ema-0.9.safetensors")["head.weight"])
    assert not torch.equal(average["head.weight"], tensors["head.weight"])


def test_an_earlier_stage_is_its_last_checkpoint(trained_run: Path) -> None:
    found = StoredRun.open(trained_run).weights(0)
    assert (found.path.name, found.stage, found.step, found.decays) == ("step-00000004", 0, 4, DECAYS)
    assert "blocks.1.fc1.weight" in found.tensors() and "blocks.2.fc1.weight" not in found.tensors(0.5)


def test_a_killed_run_has_the_weights_of_its_newest_checkpoint_that_verifies(trained_run: Path) -> None:
    run = StoredRun.open(unfinished(trained_run, 6))
    (trained_run / ".saving-x").mkdir()
    notes: list[str] = []
    assert not run.finished and run.weights(note=notes.append).path.name == "step-00000006" and notes == []
    damage(trained_run / "step-00000006")
    found = run.weights(note=notes.append)
    assert (found.path.name, found.stage) == ("step-00000004", 0)
    assert len(notes) == 1 and notes[0].startswith("checkpoint passed over: ") and "sha256" in notes[0]
    assert run.newest_stage() == 1  # by the manifest alone
    for name in ("step-00000002", "step-00000004"):
        damage(trained_run / name)
    with pytest.raises(InputError, match="has no checkpoint that verifies"):
        run.weights()


def test_a_checkpoint_is_a_run_of_its_own(trained_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "step-00000004"
    shutil.copytree(trained_run / alone.name, alone)
    run = StoredRun.open(alone)
    assert is_run(alone) and not run.finished and run.weights().path == alone
    assert (run.newest_stage(), run.weights().stage, run.weights().step) == (0, 0, 4)
    damage(alone)
    with pytest.raises(InputError, match="has no checkpoint that verifies"):
        run.weights()


def test_what_is_missing_is_said(trained_run: Path) -> None:
    run = StoredRun.open(trained_run)
    for stage in (2, -1):
        with pytest.raises(InputError, match=rf"has no stage {stage}; it has stages 0 to 1"):
            run.weights(stage)
    with pytest.raises(InputError, match=r"has no average of decay 0.7; it has 0.5, 0.9"):
        run.weights().tensors(0.7)
    for name in ("step-00000002", "step-00000004"):
        shutil.rmtree(trained_run / name)
    with pytest.raises(InputError, match=r"holds no checkpoint of stage 0, only of 1; train with --set train.keep=no"):
        run.weights(0)
    (trained_run / "model-ema-0.5.safetensors").unlink()
    (trained_run / "model-ema-0.9.safetensors").unlink()
    (trained_run / "model-ema-x.safetensors").touch()
    with pytest.raises(InputError, match=r"has no average of decay 0.5; it has none"):
        run.weights().check_average(0.5)
    with pytest.raises(InputError, match="holds no weights yet"):
        StoredRun.open(unfinished(trained_run, 0)).weights()


def test_other_folders_are_not_runs(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nothing", "does not exist"),
        ("file", "is a file; expected the folder of a run"),
        ("empty", "has no config.json, so it is not a run"),
    ):
        assert not is_run(tmp_path / name)
        with pytest.raises(InputError, match=message):
            StoredRun.open(tmp_path / name)
    (trained_run / "plan.json").unlink()
    with pytest.raises(InputError, match="has no plan.json, so it is not a run"):
        StoredRun.open(trained_run)


def test_a_run_from_python_has_no_name_for_its_network(trained_run: Path) -> None:
    for name in ("config.json", "plan.json"):
        (trained_run / name).unlink()
    assert is_run(trained_run)
    with pytest.raises(InputError, match=r"holds no config.json, .* trained from Python.*your own model with") as error:
        StoredRun.open(trained_run)
    assert "\n" not in str(error.value)
    checkpoint = trained_run / "step-00000004"
    (checkpoint / "config.json").unlink()
    with pytest.raises(InputError, match="trained from Python"):
        StoredRun.open(checkpoint)


@pytest.mark.parametrize("text", ["[]", "{", '{"source": 3}', '{"format": "x"}', "[" * 20000])
@pytest.mark.parametrize("name", ["config.json", "plan.json"])
def test_damaged_files_are_one_line(trained_run: Path, name: str, text: str) -> None:
    (trained_run / name).write_text(text)
    with pytest.raises(InputError, match=name) as error:
        StoredRun.open(trained_run)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_plan_is_refused(trained_run: Path) -> None:
    plan = json.loads((trained_run / "plan.json").read_text())
    plan["stages"] = [{**plan["stages"][0], "share": 1.0}]
    (trained_run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="has no stage 1; it has stage 0 only"):
        StoredRun.open(unfinished(trained_run, 6)).weights()
