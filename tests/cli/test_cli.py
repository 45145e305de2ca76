"""The command line on good input: streams, JSON fields, files, and what is not imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from progc.models.opening import open_source
from tests.command import NET, Command, files_below, in_subprocess

REPORT = {
    "params_before", "params_after", "lossless", "max_abs_diff", "max_rel_diff", "seconds", "source", "target",
    "init", "seed",
}  # fmt: skip


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text('print("hello from the file")\n' + NET)
    return path


def _weights(net: Path, name: str = "w.safetensors", seed: int = 3) -> Path:
    generator = torch.Generator().manual_seed(seed)
    state = open_source(str(net)).build().state_dict()
    path = net.parent / name
    save_file({key: torch.randn(value.shape, generator=generator) for key, value in state.items()}, path)
    return path


def _loaded(net: Path, file: Path, name: str) -> torch.nn.Module:
    model = open_source(f"{net}:{name}").build()
    model.load_state_dict(load_file(file), strict=True)
    return model.double().eval()


def test_version_help_and_passes_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom progc.cli import main\n"
        "for arguments in (['--version'], ['--help'], ['grow', '--help'], ['passes']):\n"
        "    assert main(arguments) == 0, arguments\n"
        "assert 'torch' not in sys.modules\n"
        "main(['passes', 'grow-depth'])\nimport torch\nassert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("progc 0.1.0\nUsage: progc ")
    assert done.stderr == ""


def test_passes_are_listed_with_one_line_each_and_described_in_full(run: Command) -> None:
    listed = run("passes")
    assert listed.code == 0 and listed.err == ""
    assert re.search(r"^grow-depth  +\S.*\.$", listed.out, re.MULTILINE)
    described = run("passes", "grow-depth")
    assert described.out.startswith("grow-depth\n") and "Options:" in described.out


def test_grow_writes_what_the_target_class_loads_and_prints_the_same_report(
    run: Command, net: Path, tmp_path: Path
) -> None:
    weights, out = _weights(net), tmp_path / "runs" / "grown"
    outcome = run("grow", f"{net}:Net", "--to", f"{net}:big", "--weights", weights, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report.keys() >= REPORT
    assert json.loads((out / "report.json").read_text()) == report
    assert files_below(out) == {"model.safetensors", "plan.json", "report.json"}
    assert report["lossless"] is True and report["max_rel_diff"] < 1e-9
    assert (report["source"], report["target"], report["seed"]) == (f"{net}:Net", f"{net}:big", 0)
    assert {"build", "capture", "target", "write"} <= report["seconds"].keys()
    assert isinstance(json.loads((out / "plan.json").read_text()), dict)
    x = torch.randn(7, 5, dtype=torch.float64)
    before, after = _loaded(net, weights, "Net"), _loaded(net, out / "model.safetensors", "big")
    assert report["params_before"] == sum(p.numel() for p in before.parameters())
    assert report["params_after"] == sum(p.numel() for p in after.parameters())
    torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)


def test_an_averaged_copy_grows_by_the_same_lift(run: Command, net: Path, tmp_path: Path) -> None:
    weights, average = _weights(net), _weights(net, "ema.safetensors", seed=4)
    out = tmp_path / "grown"
    outcome = run("grow", f"{net}:Net", "--to", "depth*2,width*2", "--weights", weights, "--ema", average, "--out", out)
    assert outcome.code == 0, outcome.err
    assert files_below(out) == {"ema.safetensors", "model.safetensors", "plan.json", "report.json"}
    x = torch.randn(7, 5, dtype=torch.float64)
    before, after = _loaded(net, average, "Net"), _loaded(net, out / "ema.safetensors", "big")
    torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)


def test_grow_for_people(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "depth*2")
    assert outcome.code == 0, outcome.err
    for line in (r"^parameters +\S+ -> \S+", r"^lossless +yes", r"^difference +max absolute \S+, relative \S+"):
        assert re.search(line, outcome.out, re.MULTILINE), outcome.out
    assert "hello from the file" not in outcome.out
    lines = outcome.err.splitlines()
    assert any(line.startswith("progc: capture: ") for line in lines)
    assert "progc: weights of" in outcome.err and "initialised by Net, seed 0" in outcome.err


def test_inits_are_passed_on_and_lossy_ones_say_so(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "depth*2,width*2", "--init", "width=random,depth=stack", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["lossless"] is False and report["max_abs_diff"] > 0
    assert {"width": "random", "depth": "stack"}.items() <= report["init"].items()


@pytest.mark.parametrize("command", ["grow", "apply"])
def test_all_weights_come_from_the_average(run: Command, net: Path, tmp_path: Path, command: str) -> None:
    weights, average, out = _weights(net), _weights(net, "ema.safetensors", seed=4), tmp_path / "grown"
    how = ("--to", "depth*2") if command == "grow" else ("--pipeline", "grow-depth{to=*2}")
    found = {}
    for source in ("new", "all"):
        place = out / source
        outcome = run(
            command, f"{net}:Net", *how, "--init", f"depth=mogrow,source={source}", "--weights", weights, "--ema",
            average, "--out", place,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        found[source] = load_file(place / "model.safetensors")
    own, averaged = load_file(weights), load_file(average)
    for name, origin in (("embed.weight", "embed.weight"), ("blocks.0.fc1.weight", "blocks.0.fc1.weight")):
        assert torch.equal(found["new"][name], own[origin]) and torch.equal(found["all"][name], averaged[origin])
    assert torch.equal(found["new"]["blocks.1.fc1.weight"], averaged["blocks.0.fc1.weight"])


def test_the_same_seed_gives_the_same_bytes(run: Command, net: Path, tmp_path: Path) -> None:
    files: list[bytes] = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        outcome = run("grow", f"{net}:Net", "--to", "width*2", "--seed", seed, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_preset_is_applied_to_the_users_own_network(run: Command, tmp_path: Path) -> None:
    path = tmp_path / "vit.py"
    path.write_text(
        "import timm\ndef build():\n"
        "    return timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, num_classes=4)\n"
    )
    outcome = run("grow", path, "--to", "vit_t", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["lossless"] is True and report["params_after"] > 5 * report["params_before"]


def test_inspect_shows_a_summary_tables_and_the_graph(run: Command, net: Path) -> None:
    summary = run("inspect", f"{net}:Net")
    assert summary.code == 0, summary.err
    assert re.search(r"^parameters +667$", summary.out, re.MULTILINE)
    assert "blocks (2 blocks)" in summary.out
    assert "blocks" in run("inspect", f"{net}:Net", "--chains").out
    assert "residual width" in run("inspect", f"{net}:Net", "--axes").out
    graph = run("inspect", f"{net}:Net", "--graph").out
    assert "f32[2, 5]" in graph  # rich would have eaten the brackets
    assert max(map(len, graph.splitlines())) > 80  # nor are lines wrapped


def test_inspect_as_json(run: Command, net: Path) -> None:
    outcome = run("inspect", f"{net}:Net", "--axes", "--chains", "--graph", "--json")
    assert outcome.code == 0, outcome.err
    content = json.loads(outcome.out)
    assert content.keys() >= {"source", "class", "params", "inputs", "axes", "chains", "graph"}
    assert content["inputs"] == [[2, 5]] and content["dynamic_batch"] is True


def test_inspect_of_an_output_folder_imports_neither_torch_nor_the_users_file(
    run: Command, net: Path, tmp_path: Path
) -> None:
    assert run("grow", f"{net}:Net", "--to", "depth*2", "--out", tmp_path / "out").code == 0
    net.write_text("raise RuntimeError('imported')\n")
    code = (
        "import sys\nfrom progc.cli import main\nassert main(['inspect', 'out', '--json']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["report"]["lossless"] is True
    assert content["tensors"]["model.safetensors"]["blocks.3.fc1.weight"] == {"dtype": "F32", "shape": [16, 8]}
    shown = run("inspect", tmp_path / "out")
    assert re.search(r"^lossless +yes$", shown.out, re.MULTILINE) and "F32[16, 8]" in shown.out


def test_apply_runs_a_pipeline_and_writes(run: Command, net: Path, tmp_path: Path) -> None:
    weights, out = _weights(net), tmp_path / "out"
    pipeline = "grow-depth{to=*2}, grow-width{width=*2 mlp=*2}"
    outcome = run("apply", f"{net}:Net", "--pipeline", pipeline, "--weights", weights, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["lossless"] is True and report["max_rel_diff"] < 1e-9
    assert [entry["changed"] for entry in report["passes"]] == [True, True]
    assert files_below(out) == {"model.safetensors", "report.json"}
    x = torch.randn(7, 5, dtype=torch.float64)
    before, after = _loaded(net, weights, "Net"), _loaded(net, out / "model.safetensors", "big")
    torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)


def test_apply_for_people(run: Command, net: Path) -> None:
    outcome = run("apply", f"{net}:Net", "--pipeline", "grow-depth{to=*2}")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^grow-depth\S*: \S.*$", outcome.out, re.MULTILINE)
    assert re.search(r"^parameters: 667 -> ", outcome.out, re.MULTILINE)


def test_a_real_process_in_another_folder(net: Path, tmp_path: Path) -> None:
    """Modules that lie about in the current folder are not picked up, and only the result is on stdout."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("torch.py", "rich.py", "typer.py", "safetensors.py"):
        (elsewhere / name).write_text("raise RuntimeError('picked up from the current folder')\n")
    outcome = in_subprocess(["inspect", f"{net}:Net", "--json"], cwd=elsewhere)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["params"] == 667
    assert "hello from the file" in outcome.err
    assert files_below(elsewhere) == {"torch.py", "rich.py", "typer.py", "safetensors.py"}


def test_an_unexpected_exception_is_one_line_and_exit_code_1(
    run: Command, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("progc.capturing.capture.capture", broken)
    outcome = run("inspect", f"{net}:Net")
    assert (outcome.code, outcome.out) == (1, "")
    expected = "progc: internal error: ZeroDivisionError: first second; run again with --debug and report"
    assert outcome.err.splitlines()[-1].startswith(expected)
    monkeypatch.setattr("progc.capturing.capture.capture", _interrupted)
    assert run("inspect", f"{net}:Net").code == 130


def _interrupted(*_args: Any, **_kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["grow", "plan", "inspect", "apply", "passes", "train", "export", "doctor", "plot"])
def test_every_command_explains_itself(run: Command, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0 and outcome.err == "" and outcome.out.startswith(f"Usage: progc {command} ")


OPTIONS: dict[str, set[str]] = {
    "grow": {
        "--to", "--model-arg", "--weights", "--ema", "--init", "--lossy", "--explain", "--out", "--seed", "--json",
        "--help",
    },
    "plan": {
        "--to", "--strategy", "--decide", "--stages", "--shares", "--rule", "--mode", "--depths", "--widths",
        "--resolutions", "--unfreeze", "--epochs", "--steps", "--batch", "--stage-batch", "--data", "--model-arg",
        "--weights", "--seed", "--measure", "--set", "--sid", "--sid-init", "--regularise", "--init", "--out", "--json",
        "--help",
    },
    "inspect": {"--axes", "--chains", "--graph", "--explain", "--stage", "--model-arg", "--json", "--help"},
    "apply": {
        "--pipeline", "--model-arg", "--weights", "--average", "--ema", "--init", "--out", "--seed", "--json", "--help",
    },
    "passes": {"--help"},
    "train": {
        "--out", "--data", "--to", "--model-arg", "--weights", "--plan", "--strategy", "--decide", "--stages",
        "--shares", "--rule", "--epochs", "--steps", "--batch", "--stage-batch", "--lr", "--seed", "--init", "--set",
        "--from", "--dry-run", "--smoke", "--json", "--help",
    },
    "export": {"--average", "--stage", "--sid", "--format", "--to", "--force", "--json", "--help"},
    "doctor": {"--folder", "--json", "--help"},
    "plot": {"--out", "--json", "--help"},
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_exactly_these(run: Command, command: str) -> None:
    found = re.findall(r"^  (?:-h, )?(--[a-z-]+)", run(command, "--help").out, re.MULTILINE)
    assert set(found) == OPTIONS[command]
