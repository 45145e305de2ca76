"""Exports of a run: what the files compute, in the user's own class, and what is refused before and after any work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import progc
from progc.errors import CheckError, InputError, NotLosslessError
from progc.models.opening import open_source
from progc.runs.exporting.export import Request, export
from progc.runs.exporting.identifier import Identifier
from progc.runs.stored import StoredRun
from progc.runs.trained import TrainedNetwork
from tests.command import NET, files_below
from tests.stored_runs import finished_run, unfinished


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    yield


def exported(run: Path, *, stage: int | None = None, average: float | None = None, **options: Any) -> dict[str, Any]:
    request = Request.make(TrainedNetwork.open(run, stage=stage, average=average), **options)
    return export(request, phase=phase, note=lambda text: None)


def at_row(run: Path, stage: int, row: int, average: float | None = None) -> Any:
    """The run's own module, as the trainer makes it, with one row of its identifier; takes and returns float64."""
    stored = StoredRun.open(run)
    full = open_source(stored.config.source).program()
    module = next(progc.stages(full, stored.schedule, start=stage)).module
    module.load_state_dict(stored.weights(stage).tensors(average), strict=True)
    module.double().eval()
    return lambda x: module(x, stage=torch.full((len(x),), row))


def own_class(run: Path, weights: Path) -> torch.nn.Module:
    model = open_source(StoredRun.open(run).config.source).build(seed=3)
    model.load_state_dict(load_file(weights), strict=True)
    return model.double().eval()


X = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("sid", "row"), [(None, 1), ("0", 0), ("1", 1), ("null", 2)])
def test_the_own_class_computes_what_the_run_computes_with_that_row(
    trained_run: Path, sid: str | None, row: int
) -> None:
    report = exported(trained_run, sid=sid)
    assert (report["class"], report["sid"], report["folded_into"]) == ("equal", row, ["embed.bias"])
    assert report["max_rel_diff"] < 1e-6 and report["finished"] and (report["stage"], report["step"]) == (1, 8)
    outputs = own_class(trained_run, Path(report["path"]))(X)
    assert (outputs - at_row(trained_run, 1, row)(X)).abs().max() < 1e-6
    for other in {0, 1, 2} - {row}:  # the rows are far apart, so that this can fail
        assert (outputs - at_row(trained_run, 1, other)(X)).abs().max() > 1e-3


def test_an_average_folds_its_own_row(trained_run: Path) -> None:
    for average in (0.5, 0.9):
        report = exported(trained_run, average=average)
        assert report["path"].endswith(f"run/export-ema-{average}.safetensors") and report["average"] == average
        outputs = own_class(trained_run, Path(report["path"]))(X)
        assert (outputs - at_row(trained_run, 1, 1, average)(X)).abs().max() < 1e-6
        assert (outputs - at_row(trained_run, 1, 1)(X)).abs().max() > 1e-3


def test_an_earlier_stage_folds_its_own_row_and_says_that_it_is_small(trained_run: Path) -> None:
    report = exported(trained_run, stage=0)
    assert (report["class"], report["sid"], report["stage"], report["step"]) == ("not tried", 0, 0, 4)
    assert "stage 0 (blocks:2) is smaller than " in report["class_reason"] and report["max_rel_diff"] < 1e-6
    assert report["path"].endswith("run/export-step-4.safetensors")
    class_of_that_depth = trained_run.parent / "small.py"
    class_of_that_depth.write_text(NET + "def build():\n    return Net(16, 2)\n")
    model = open_source(str(class_of_that_depth)).build()
    model.load_state_dict(load_file(report["path"]), strict=True)
    assert (model.double().eval()(X) - at_row(trained_run, 0, 0)(X)).abs().max() < 1e-6


def test_a_killed_run_exports_its_newest_checkpoint(trained_run: Path) -> None:
    report = exported(unfinished(trained_run, 6))
    assert (report["class"], report["finished"], report["step"], report["stage"]) == ("equal", False, 6, 1)
    outputs = own_class(trained_run, trained_run / "export-step-6.safetensors")(X)
    assert (outputs - at_row(trained_run, 1, 1)(X)).abs().max() < 1e-6
    alone = exported(trained_run / "step-00000004", to=trained_run.parent / "one.safetensors")
    assert (alone["step"], alone["stage"]) == (4, 0)


def test_a_kept_identifier_stays_in_the_weights(trained_run: Path) -> None:
    report = exported(trained_run, sid="keep")
    assert (report["sid"], report["class"], report["max_rel_diff"]) == ("kept", "not tried", None)
    expected = load_file(trained_run / "model.safetensors")
    found = load_file(report["path"])
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_without_an_identifier(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    last = finished_run(tmp_path / "run", f"{tmp_path / 'net.py'}:big")
    report = exported(tmp_path / "run", to=tmp_path / "w.safetensors")
    assert (report["sid"], report["class"], report["folded_into"]) == (None, "equal", [])
    assert report["max_rel_diff"] < 1e-9 and report["step"] is None
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in last.persistent().items())
    with pytest.raises(InputError, match="--sid 0: the stages of this run have no identifier; leave out --sid"):
        exported(tmp_path / "run", sid="0")


@pytest.mark.parametrize(("to", "status"), [("depth=4", "not tried"), ("net.py:big", "equal")])
def test_the_class_of_a_run_that_grows_to_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, status: str
) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    finished_run(tmp_path / "run", "net.py:Net", to=to)
    report = exported(tmp_path / "run")
    assert report["class"] == status
    if status == "not tried":
        assert report["class_reason"] == "progc cannot build the class at the sizes depth=4"
        with pytest.raises(InputError, match="grows to sizes that no config describes; export it with --format safet"):
            exported(tmp_path / "run", form="folder")


CHANGING = """
BUILT = []

class Changing(Net):
    def __init__(self):
        super().__init__()
        BUILT.append(1)
        self.factor = float(len(BUILT) == 1 or len(BUILT) == 2)

    def forward(self, x):
        return super().forward(x) * self.factor + 1
"""


def test_a_class_that_computes_something_else_is_noticed(tmp_path: Path) -> None:
    """The third time, the class is built as another network: weights load strictly, but outputs differ."""
    (tmp_path / "net.py").write_text(NET + CHANGING)
    finished_run(tmp_path / "run", f"{tmp_path / 'net.py'}:Changing")
    before = files_below(tmp_path / "run")
    with pytest.raises(CheckError, match=r"Changing of .* differs from the run's network by .*nothing was written"):
        exported(tmp_path / "run")
    assert files_below(tmp_path / "run") == before


def test_an_identifier_that_cannot_be_folded_can_be_kept(tmp_path: Path) -> None:
    text = NET.replace("nn.Linear(5, dim)", "nn.Linear(5, dim, bias=False)").replace(
        "nn.LayerNorm(dim)", "nn.Identity()"
    )
    (tmp_path / "net.py").write_text(text)
    finished_run(tmp_path / "run", f"{tmp_path / 'net.py'}:big", sid=True)
    with pytest.raises(NotLosslessError, match=r"no parameter can absorb .*; give --sid keep to export") as error:
        exported(tmp_path / "run")
    assert "inject-sid{" not in str(error.value)
    assert exported(tmp_path / "run", sid="keep")["sid"] == "kept"


def test_an_existing_target_is_replaced_only_by_force(trained_run: Path) -> None:
    target = trained_run.parent / "w.safetensors"
    target.write_text("mine")
    with pytest.raises(InputError, match=r"w.safetensors exists; add --force to replace it, or give another --to"):
        exported(trained_run, to=target)
    assert target.read_text() == "mine"
    exported(trained_run, to=target, force=True)
    assert load_file(target)
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        exported(trained_run, to=trained_run, form="safetensors", force=True)
    with pytest.raises(InputError, match="cannot be written .*create the folder or choose another"):
        exported(trained_run, to=trained_run / "none" / "w.pt2")


def test_a_failure_leaves_nothing_behind(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_below(trained_run)

    def broken(path: Path, tensors: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("progc.ir.tensor_file.write_tensors", broken)
    with pytest.raises(InputError, match="No space left on device"):
        exported(trained_run)
    assert files_below(trained_run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sid": "2"}, "--sid 2: expected a row from 0 to 1, null or keep"),
        ({"sid": "-1"}, "--sid -1: expected a row"),
        ({"sid": "last"}, "--sid last: expected a row"),
        ({"form": "zip"}, "--format zip: expected safetensors, pt2, onnx, folder"),
        ({"to": Path("x.bin")}, "--to x.bin does not tell the format; add --format"),
        ({"to": Path("x.pt2"), "form": "onnx"}, "has the suffix of another format than --format onnx"),
        ({"form": "folder", "sid": "keep"}, "--format folder cannot keep the identifier"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(TrainedNetwork, "program", lambda *args, **more: pytest.fail("built"))
    with pytest.raises(InputError, match=message) as error:
        exported(trained_run, **options)
    assert "\n" not in str(error.value)


def test_the_row_of_a_stage_without_one_is_the_null_row(trained_run: Path) -> None:
    schedule = StoredRun.open(trained_run).schedule
    assert Identifier.choose(None, schedule, 0) == Identifier(0)
    first = schedule.stages[0]
    mixed = [type(first)(0, first.point, 0.5), schedule.stages[1]]
    assert Identifier.choose(None, type(schedule)(schedule.model, "linear", tuple(mixed), schedule.space), 0) == (
        Identifier(None)
    )
