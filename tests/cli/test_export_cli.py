"""`progc export`, and runs as sources of the other commands: options, output, exit codes and messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from progc.runs.stored import StoredRun
from tests.command import NET, Command, files_below, in_subprocess
from tests.stored_runs import DATA, damage, unfinished


def test_export_says_what_it_wrote(run: Command, trained_run: Path) -> None:
    outcome = run("export", trained_run)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    found = {name: text.strip() for name, text in lines.items()}
    assert found["run"] == f"{trained_run}, finished" and found["stage"] == "1 of stages 0 to 1, step 8"
    assert found["average"] == "none (there are: 0.5, 0.9)"
    assert found["identifier"] == "row 1 folded into embed.bias" and found["own class"] == "equal"
    assert found["written"].startswith(f"{trained_run / 'export.safetensors'} (")
    assert f"weights of {trained_run}: stage 1, from {trained_run / 'model.safetensors'}" in outcome.err
    again = run("export", trained_run)
    assert (again.code, again.out) == (2, "") and "add --force to replace it" in again.err


def test_json_is_one_object(run: Command, trained_run: Path) -> None:
    target = trained_run.parent / "w.safetensors"
    outcome = run("export", trained_run, "--average", "0.9", "--stage", "0", "--sid", "null", "--to", target, "--json")
    report = json.loads(outcome.out)
    assert (report["average"], report["stage"], report["sid"], report["path"]) == (0.9, 0, 2, str(target))
    assert (report["class"], report["format"], report["averages"]) == ("not tried", "safetensors", [0.5, 0.9])
    assert report["bytes"] == target.stat().st_size and report["versions"]["torch"] == torch.__version__
    assert {"build", "capture", "stages", "check", "write"} <= report["seconds"].keys()


def test_a_killed_run_passes_over_what_is_damaged(run: Command, trained_run: Path) -> None:
    unfinished(trained_run, 6)
    damage(trained_run / "step-00000006")
    outcome = run("export", trained_run, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["step"] == 4
    assert "checkpoint passed over: " in outcome.err and "sha256" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing does not exist; expected the folder of a run that progc train wrote"),
        (["run", "--stage", "7"], "run has no stage 7; it has stages 0 to 1"),
        (["run", "--average", "0.7"], "model.safetensors has no average of decay 0.7; it has 0.5, 0.9"),
        (["run", "--sid", "9"], "--sid 9: expected a row from 0 to 1, null or keep"),
        (["run", "--format", "tar"], "--format tar: expected safetensors, pt2, onnx, folder"),
        (["run", "--format", "folder"], "net.py:big has no folder format, only models of"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    run: Command, trained_run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(trained_run.parent)
    before = files_below(trained_run)
    outcome = run("export", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert len(outcome.err.splitlines()) == 1 and message in outcome.err, outcome.err
    assert files_below(trained_run) == before


def test_passes_run_on_a_run(run: Command, trained_run: Path) -> None:
    out = trained_run.parent / "out"
    outcome = run("apply", trained_run, "--pipeline", "remove-sid{stage=0}", "--average", "0.5", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["weights"] == str(trained_run / "model-ema-0.5.safetensors")
    average, found = load_file(report["weights"]), load_file(out / "model.safetensors")
    folded = average["embed.bias"] + average["stage_embedding.weight"][0]
    assert torch.equal(found["embed.bias"], folded) and "stage_embedding.weight" not in found
    bad = run("apply", trained_run, "--pipeline", "remove-sid", "--weights", "w.pt")
    assert (bad.code, bad.out) == (2, "") and "is a run and has its own weights; leave out --weights w.pt" in bad.err
    bad = run("apply", f"{trained_run}.py", "--pipeline", "remove-sid", "--average", "0.5")
    assert bad.code == 2 and "--average 0.5 needs a run" in bad.err


def test_a_run_grows_with_its_weights(run: Command, trained_run: Path) -> None:
    out = trained_run.parent / "out"
    outcome = run("grow", trained_run / "step-00000004", "--to", "depth=3", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["lossless"] and report["weights"] == str(trained_run / "step-00000004")
    assert torch.equal(
        load_file(out / "model.safetensors")["head.weight"],
        load_file(trained_run / "step-00000004" / "model.safetensors")["head.weight"],
    )


def test_inspect_shows_a_run_without_running_its_code(run: Command, trained_run: Path) -> None:
    source = Path(StoredRun.open(trained_run).config.source.partition(":")[0])
    moved = trained_run.parent / "nowhere.py"
    (trained_run / "config.json").write_text((trained_run / "config.json").read_text().replace(str(source), str(moved)))
    damage(trained_run / "step-00000002", "manifest.json")
    outcome = run("inspect", trained_run)
    assert outcome.code == 0, outcome.err
    assert f"{trained_run}, finished" in outcome.out and "averages     0.9, 0.5" in outcome.out
    assert "step-00000008 (stage 1), step-00000006 (stage 1), step-00000004 (stage 0), step-00000002 (damaged)" in (
        outcome.out
    )
    assert "stage identifier  rows 0 1" in outcome.out  # the plan
    found = json.loads(run("inspect", trained_run, "--json").out)
    assert found["finished"] and found["plan"]["format"] == "progc schedule" and found["config"]["steps"] == 8
    assert [(item["step"], item["stage"]) for item in found["checkpoints"]] == [(8, 1), (6, 1), (4, 0), (2, None)]
    assert "depth           blocks 2" in run("inspect", trained_run, "--stage", "0").out
    assert json.loads(run("inspect", trained_run, "--stage", "0", "--json").out)["point"] == {"depths": {"blocks": 2}}
    refused = run("inspect", trained_run, "--axes")
    assert refused.code == 2 and f"no such file: {moved}" in refused.err


def test_inspect_shows_the_network_of_a_stage(run: Command, trained_run: Path) -> None:
    for name in ("step-00000002", "step-00000004"):
        shutil.rmtree(trained_run / name)  # a network needs no weights to be shown
    chains = {
        stage: json.loads(run("inspect", trained_run, "--chains", "--json", *more).out)["chains"]["chains"]
        for stage, more in ((0, ("--stage", "0")), (1, ()))
    }
    assert [len(chains[stage][0]["blocks"]) for stage in (0, 1)] == [2, 4]
    text = run("inspect", trained_run, "--axes", "--graph", "--explain", "embed", "--stage", "0").out
    assert "stage_embedding" in text and "residual width" in text and "blocks.2" not in text
    alone = run("inspect", trained_run / "step-00000006", "--chains")
    assert alone.code == 0 and "4" in alone.out
    assert run("inspect", trained_run / "step-00000006").out.startswith("checkpoint")
    refused = run("inspect", trained_run, "--axes", "--stage", "2")
    assert refused.code == 2 and "has no stage 2; it has stages 0 to 1" in refused.err
    file = trained_run.parent / "net.py"
    file.write_text(NET)
    refused = run("inspect", file, "--stage", "1")
    assert refused.code == 2 and "--stage 1 needs a plan or a run" in refused.err


def test_differences_between_a_run_and_its_checkpoint(run: Command, trained_run: Path) -> None:
    outcome = run("diff", trained_run / "step-00000004", trained_run, "--graph", "--json")
    assert outcome.code == 0, outcome.err
    (chain,) = json.loads(outcome.out)["chains"]
    assert (chain["before"], chain["after"]) == (2, 4)
    same = run("diff", trained_run / "step-00000008", trained_run)
    assert same.code == 0 and "with other values" not in same.out
    out = trained_run.parent / "folder"
    assert run("apply", trained_run, "--pipeline", "remove-sid", "--out", out).code == 0
    refused = run("diff", trained_run, out, "--graph")
    assert refused.code == 2 and "is an output folder without a graph" in refused.err
    refused = run("diff", trained_run, out, "--weights", "w.pt")
    assert refused.code == 2 and "is a run and has its own weights" in refused.err


@pytest.mark.slow  # three processes; the tests above run the same commands in this one
def test_from_training_to_the_file_as_a_user_does(tmp_path: Path) -> None:
    """Real processes, in the folder of the run, with the names that a user types."""
    (tmp_path / "net.py").write_text(NET + DATA)
    sets = ("compile=eager", "ahead=false", "batch=16", "device=cpu")
    more = [part for text in sets for part in ("--set", f"train.{text}")]
    train = ["train", "net.py:big", "--steps", "4", "--stages", "2", "--out", "run", *more]
    assert in_subprocess(train, cwd=tmp_path).code == 0
    outcome = in_subprocess(["export", "run", "--to", "net.safetensors"], cwd=tmp_path)
    assert outcome.code == 0 and "own class   equal" in outcome.out, outcome.err
    expected, found = load_file(tmp_path / "run" / "model.safetensors"), load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    elsewhere = in_subprocess(["export", tmp_path / "run"], cwd=tmp_path / "run")
    assert elsewhere.code == 2 and "relative to the folder in which it was trained" in elsewhere.err
