"""Passes of users: the example, the guide, and a package that is found by its entry point."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import progc
import progc.passes
from progc.errors import InputError, PassOptionError
from progc.ir.check import compare, compare_train
from progc.lift.revert import revert
from progc.pipeline.base import Pass, to_text
from progc.pipeline.manager import run
from progc.pipeline.registry import NamedClasses
from progc.pipeline.text import parse
from tests.command import Command, Outcome, files_below, in_process, in_subprocess
from tests.pipeline.test_passes import Snapshot
from tests.test_docs import ROOT, blocks, missing_parts

GUIDE = ROOT / "docs/custom-passes.md"
EXAMPLE = ROOT / "examples" / "custom_pass.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("custom_pass_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look a class's module up there
    spec.loader.exec_module(module)
    return module


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_example_runs(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    out = capsys.readouterr().out
    assert "lossless: True; measured in float64: " in out and "3 with other values, 1 equal bit by bit" in out


def test_the_example_is_a_pass_like_ours(example: ModuleType) -> None:
    assert not missing_parts(example.Balance)
    texts = ["balance", "balance{only=up.*,blocks.*}"]
    assert [to_text(parse(text, lambda name: example.Balance)) for text in texts] == texts


class Layers(nn.Module):
    """Two pairs of layers, one without bias, one with a value that is read twice, and a pair that is no pair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)
        self.c, self.d = nn.Linear(4, 6, bias=False), nn.Linear(6, 4)
        self.e, self.f = nn.Linear(4, 6), nn.Linear(6, 4)
        self.g, self.h = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(torch.relu(self.a(x)))
        x = x + self.d(torch.relu(self.c(x)))
        y = torch.relu(self.e(x))
        x = x + self.f(y) + y[:, :4]
        return x + self.h(torch.nn.functional.gelu(self.g(x)))


def layers() -> progc.Program:
    model = Layers()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("a.weight", "c.weight", "e.weight", "g.weight"):
                parameter.mul_(torch.logspace(-3, 3, 6)[:, None])
    return progc.capture(model, (torch.randn(3, 5),))


def test_the_example_is_exact_to_the_bit_and_touches_pairs_only(example: ModuleType) -> None:
    program = layers()
    before = Snapshot(program)
    after, (result,) = run(program, [example.Balance()])
    before.assert_same()
    assert result.lossless and compare(program, after, seed=0).max_rel == 0.0
    assert compare_train(program, after, seed=0).max_rel == 0.0
    found = progc.diff(program, after)
    changed = [name for group in found.changed for name in group.names]
    assert changed == ["a.weight", "a.bias", "b.weight", "c.weight", "d.weight"]
    rows = after.tensors["a.weight"].abs().amax(1) / after.tensors["b.weight"].abs().amax(0)
    assert bool(((rows > 0.49) & (rows < 2.01)).all()), "within a factor of two of each other"
    again, (idle,) = run(after, [example.Balance()])
    assert not idle.changed and again.tensors["a.weight"] is after.tensors["a.weight"]


def test_averages_and_moments_follow_the_example(example: ModuleType) -> None:
    """With the gradient as first moment: what the lift makes of it is the gradient of the balanced network."""
    program = layers()
    after, (result,) = run(program, [example.Balance(only=("a.*",))])
    assert result.lift is not None

    def gradients(item: progc.Program) -> dict[str, dict[str, torch.Tensor]]:
        module = item.module().train()
        module.zero_grad()
        module(*item.example[0]).square().sum().backward()
        return {name: {"exp_avg": p.grad.clone()} for name, p in module.named_parameters() if p.grad is not None}

    moments, wanted = result.lift.moments(gradients(program)), gradients(after)
    assert moments.keys() == wanted.keys()
    for name, own in wanted.items():
        torch.testing.assert_close(moments[name]["exp_avg"], own["exp_avg"], rtol=1e-4, atol=1e-5)
    average = {name: tensor.detach() + 0.1 for name, tensor in program.tensors.items()}
    carried = result.lift.apply(average)
    ratio = after.tensors["a.weight"] / program.tensors["a.weight"]
    torch.testing.assert_close(carried["a.weight"], average["a.weight"] * ratio)
    back = revert(result.lift, dict(after.tensors))
    assert all(torch.equal(back[name], tensor) for name, tensor in program.tensors.items())


def test_the_example_composes_with_growth(example: ModuleType) -> None:
    program = progc.capture(example.build(), example.example_inputs())
    for passes in (["grow-width{axes=up:12}", "balance"], ["balance", "grow-width{axes=up:9}"]):
        found = parse(
            ",".join(passes), lambda n: example.Balance if n == "balance" else progc.pipeline.registry.load_pass(n)
        )
        after, results = run(program, found)
        assert [result.lossless for result in results] == [True, True]
        assert compare(program, after, seed=0).max_rel < 1e-9


def test_a_selector_that_matches_nothing_is_refused(example: ModuleType) -> None:
    with pytest.raises(
        PassOptionError, match=r"^balance: only=x\* matches no first layer; there are a.weight, c.weight$"
    ):
        run(layers(), [example.Balance(only=("x*",))])


# --- the guide ------------------------------------------------------------------------------------------------------


def test_the_guide_works() -> None:
    space: dict[str, object] = {"__name__": "guide"}
    codes = blocks(GUIDE, "python")
    assert len(codes) == 2 and len([line for line in codes[0].splitlines() if line.startswith(" " * 8)]) <= 12
    for code in codes:
        exec(compile(code, str(GUIDE), "exec", dont_inherit=True), space)
    kind = space["ScaleLayer"]
    assert isinstance(kind, type) and issubclass(kind, Pass)
    with pytest.raises(PassOptionError, match="^scale-layer: there is no layer `haed`; give the path of a module$"):
        run(layers(), [kind(layer="haed")])  # type: ignore[call-arg]


# --- a package ------------------------------------------------------------------------------------------------------


def package(site: Path, code: str, entry: str | None = None) -> None:
    """What installing a package leaves in a site folder: modules, and metadata with entry points."""
    (toml,) = blocks(GUIDE, "toml")
    lines = toml.partition('[project.entry-points."progc.passes"]\n')[2]
    entries = entry or re.sub(r'"', "", lines)
    info = site / "my_passes-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[progc.passes]\n{entries}\n")
    (site / "my_passes.py").write_text(code)


def progc_with(site: Path, *arguments: str | Path) -> Outcome:
    known = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT)) if path]
    return in_subprocess(arguments, cwd=site.parent, environment={"PYTHONPATH": os.pathsep.join([str(site), *known])})


def test_an_installed_pass_is_listed_described_and_run(tmp_path: Path) -> None:
    package(tmp_path / "site", EXAMPLE.read_text(encoding="utf-8"))
    shutil.copy(EXAMPLE, tmp_path / "model.py")
    listed = progc_with(tmp_path / "site", "passes")
    assert listed.code == 0 and re.search(r"^balance\b", listed.out, re.MULTILINE), listed
    described = progc_with(tmp_path / "site", "passes", "balance")
    assert described.out.startswith("balance\n\nBalances the rows") and "  only: values a,b,..." in described.out
    pipeline = "grow-width{axes=up:12},balance{only=up.*}"
    outcome = progc_with(tmp_path / "site", "apply", "model.py", "--pipeline", pipeline, "--out", "out", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["lossless"] is True and report["max_rel_diff"] < 1e-9
    assert report["program"]["history"] == pipeline.split(",")
    assert [entry["counts"].get("tensors scaled") for entry in report["passes"]] == [None, 3]


BROKEN = {
    "raises": "        raise KeyError('no luck')",
    "writes": "        program.tensors['up.weight'].data.mul_(2)\n"
    "        return PassResult(program.replace(class_name='x'), True, lossless=True)",
    "lies": "        tensors = {n: nn.Parameter(t.detach() + 1) for n, t in program.tensors.items()}\n"
    "        return PassResult(program.replace(tensors=tensors), True, lossless=True)",
}
MESSAGES = {
    "raises": (2, "pass broken failed with KeyError: 'no luck'; fix my_passes:Broken (--debug shows the traceback)"),
    "writes": (1, "after broken: the pass wrote to tensor `up.weight` of its input; change a copy"),
    "lies": (1, "broken claims to be lossless, but outputs differ by "),
}


HEAD = """
import dataclasses
from typing import ClassVar
from torch import nn
from progc import Pass, PassResult

@dataclasses.dataclass(frozen=True)
class Broken(Pass):
    name: ClassVar[str] = "broken"

    def run(self, program):
"""


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Commands in this process, in a folder with a model, where modules of the folder can be passes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_passes", raising=False)
    shutil.copy(EXAMPLE, "model.py")
    return in_process(capsys)


def offer(monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    table = NamedClasses("pass", "passes", {**progc.pipeline.registry.PASSES, name: place}, "no.group")
    monkeypatch.setattr(progc.pipeline.registry, "_CLASSES", table)


@pytest.mark.parametrize("case", BROKEN)
def test_a_pass_that_is_wrong_is_one_line(run_here: Command, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    Path("my_passes.py").write_text(HEAD + BROKEN[case] + "\n")
    offer(monkeypatch, "broken", "my_passes:Broken")
    outcome = run_here("apply", "model.py", "--pipeline", "broken", "--out", "out")
    exit_code, message = MESSAGES[case]
    assert (outcome.code, outcome.out) == (exit_code, ""), outcome
    line = outcome.err.splitlines()[-1]  # a slow machine reports its progress before
    assert outcome.err.count("progc: error: ") == 1 and "Traceback" not in outcome.err
    assert line.startswith(f"progc: error: {message}")
    assert files_below(Path.cwd()) <= {"model.py", "my_passes.py", "__pycache__", *map(str, Path().rglob("*.pyc"))}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "pass `mine` cannot be loaded from my_passes:Mine: ZeroDivisionError: division by zero"),
        ("def f(:", "pass `mine` cannot be loaded from my_passes:Mine: SyntaxError: "),
        ("", "pass `mine` cannot be loaded from my_passes:Mine: module 'my_passes' has no attribute 'Mine'"),
        (
            "class Mine: pass",
            "pass `mine`: expected a subclass of progc.Pass, got my_passes:Mine; derive it from progc.Pass",
        ),
    ],
)
def test_a_package_that_is_wrong_is_one_line(
    run_here: Command, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    Path("my_passes.py").write_text(code)
    offer(monkeypatch, "mine", "my_passes:Mine")
    outcome = run_here("passes", "mine")
    assert outcome.code == 2 and outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"progc: error: {message}")


def test_an_installed_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    package(tmp_path / "site", "", "grow-depth = my_passes:Mine")
    outcome = progc_with(tmp_path / "site", "passes")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("progc: error: two passes are called `grow-depth`: progc.passes.")


def test_an_option_without_help_is_its_authors_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bare_pass.py").write_text(
        "import dataclasses\nfrom progc.pipeline.base import Pass\n"
        "@dataclasses.dataclass(frozen=True)\nclass Bare(Pass):\n    name = 'bare'\n    size: int = 3\n"
        "    def run(self, program): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    offer(monkeypatch, "bare", "bare_pass:Bare")
    with pytest.raises(InputError, match=r"^pass `bare` of bare_pass:Bare: Bare.size is not declared with option\(\)$"):
        progc.pipeline.registry.load_pass("bare")


def test_the_environment_of_these_tests_has_no_such_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import progc.passes; print('balance' in progc.pipeline.registry.names())"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "False\n"
