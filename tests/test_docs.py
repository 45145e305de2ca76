"""Documents say the truth: method cards run and cover every pass, files and modules that are named exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import progc.analysis.axes.registry
from progc.pipeline.base import Pass
from progc.pipeline.registry import PASSES, load_pass
from progc.schedule import Regularisation
from tests.schedule import made

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "docs" / "passes"
OTHER_CARDS = ("optimizer-state",)  # of what passes carry along: tests/lift/optimizers/test_card.py
SECTIONS = [
    "Summary", "When to use", "Example", "Options", "What is preserved", "Limits", "Evidence", "Attribution",
]  # fmt: skip
PARTS = ("Idea: ", "Preserved: ", "Needs: ", "Leaves behind: ")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCES = sorted(path for top in ("progc", "passes", "models") for path in (ROOT / top).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a Markdown file in one language."""
    return [code for found, code in BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]


def execute(path: Path, code: str) -> dict[str, object]:
    """Runs a block at top level, with its place in the document as line numbers of a traceback."""
    text = path.read_text(encoding="utf-8")
    padding = "\n" * text[: text.index(code)].count("\n")
    # A name of its own: classes that are defined in the block must not pass for those of this module.
    space: dict[str, object] = {"__name__": "example"}
    exec(compile(padding + code, str(path), "exec", dont_inherit=True), space)
    return space


# --- method cards ---------------------------------------------------------------------------------------------------


def test_every_card_is_that_of_a_pass() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == {*PASSES, *OTHER_CARDS}


@pytest.mark.parametrize("name", PASSES)
def test_pass_lives_in_a_file_of_its_name_and_its_docstring_has_the_parts(name: str) -> None:
    found = load_pass(name)
    assert found.__module__ == "progc.passes." + name.replace("-", "_")
    assert not missing_parts(found)


def missing_parts(found: type[Pass]) -> list[str]:
    """Parts that a pass's own docstring lacks; each starts a line."""
    lines = inspect.cleandoc(found.__dict__.get("__doc__") or "").splitlines()
    return [part for part in PARTS if not any(line.startswith(part) for line in lines)]


def test_the_docstring_check_can_fail() -> None:
    class Bare(Pass):
        """Does something. Idea: none. Needs: nothing.

        Needs: a program.
        """

    assert missing_parts(Bare) == ["Idea: ", "Preserved: ", "Leaves behind: "]


@pytest.mark.parametrize("name", PASSES)
def test_card_has_its_sections(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\n{inspect.cleandoc(load_pass(name).__doc__ or '').splitlines()[0]}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", PASSES)
def test_options_of_the_card_are_the_pass_own(name: str, request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes them."""
    path, doc = CARDS / f"{name}.md", load_pass(name).doc()
    expected = doc[doc.index("Options:\n") :]
    if request.config.getoption("--update-golden"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(?<=^```text\n).*?(?=^```)", lambda _: expected, text, flags=re.M | re.S), "utf-8")
    assert blocks(path, "text") == [expected]


@pytest.mark.parametrize("name", PASSES)
def test_example_of_the_card_runs(name: str) -> None:
    path = CARDS / f"{name}.md"
    (code,) = blocks(path, "python")
    assert name in code and "assert" in code
    execute(path, code)


@pytest.mark.parametrize("name", PASSES)
def test_figures_of_the_card_are_those_of_the_measurement(name: str) -> None:
    """Every row `| variant | a (b to c) | ...` of the evidence holds figures of the file it names, rounded.

    That is evidence.json, or one of bench/results/.
    """
    section = (CARDS / f"{name}.md").read_text(encoding="utf-8").partition("## Evidence")[2].partition("\n## ")[0]
    named = re.search(r"bench/results/\w+\.json", section)
    results = json.loads((ROOT / named[0] if named else CARDS / "evidence.json").read_text(encoding="utf-8"))
    ratios = results["results"]["ratios"] if named else results["ratios"]
    tables = [table for table in re.split(r"\n\n", section) if table.strip().startswith("|")]
    assert tables or section.strip().startswith("Not measured")
    for table in tables:
        head, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()]
        for variant, *cells in rows:
            for column, cell in zip(head[1:], cells, strict=True):
                expected = [f"{value:.2f}" for value in ratios[variant.replace("`", "")][column]]
                assert re.findall(r"\d+\.\d+", cell) == expected, f"{variant}, {column}: {cell}, measured {expected}"


# --- what documents and comments name -------------------------------------------------------------------------------

DOCUMENT = re.compile(r"(?<![\w/.<-])((?:[\w.-]+/)*[\w-]+\.md)\b")
MODULE = re.compile(r"`((?:progc|passes|models|examples|tests|bench|docs)/[\w/.-]*)`")


def dangling(text: str, folder: Path) -> list[str]:
    """Documents that a text names and that exist neither beside it nor from the root."""
    return [name for name in DOCUMENT.findall(text) if not any((base / name).is_file() for base in (folder, ROOT))]


def named_files() -> Iterator[Path]:
    """Everything that may mention a document, this file apart."""
    tests = (path for top in ("tests", "examples", "bench") for path in (ROOT / top).rglob("*.py"))
    yield from (path for path in [*SOURCES, *DOCUMENTS, *tests] if path != Path(__file__).resolve())


def test_every_document_that_is_named_exists() -> None:
    for path in named_files():
        missing = dangling(path.read_text(encoding="utf-8"), path.parent)
        assert not missing, f"{path.relative_to(ROOT)} names {missing}, which does not exist"


def test_the_check_above_can_fail() -> None:
    text = "see nowhere.md, docs/nothing.md (docs/growth.md section 2), [here](../README.md) and README.md"
    assert dangling(text, ROOT / "docs") == ["nowhere.md", "docs/nothing.md"]


def test_every_record_that_is_named_exists() -> None:
    known = {path.name[:4] for path in (ROOT / "docs" / "adr").glob("*.md")}
    for path in named_files():
        for number in re.findall(r"docs/adr/(\d{4})", path.read_text(encoding="utf-8")):
            assert number in known, f"{path.relative_to(ROOT)} names record {number}"


def test_every_module_that_a_document_names_exists() -> None:
    for path in DOCUMENTS:
        if path.name == "CONTRIBUTING.md":
            continue  # names files that a contributor is going to add
        for name in MODULE.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}, which does not exist"


# --- the picture of the packages ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """docs/architecture.py as a module."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_packages_is_current(architecture: ModuleType) -> None:
    drawn = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture.picture(), "run `python docs/architecture.py` and look at docs/architecture.svg"


def test_the_picture_follows_the_imports(architecture: ModuleType, tmp_path: Path) -> None:
    """The check above can fail: one import more, and the picture is another one."""
    for name, source in {"top": "import progc.low", "middle": "", "low": "", "base": "", "ground": ""}.items():
        (tmp_path / "progc" / name).mkdir(parents=True)
        (tmp_path / "progc" / name / "__init__.py").write_text(source, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    layers = 'layers = [\n    "top",\n    "middle | low",\n    "base",\n    "ground",\n]\n'
    (tmp_path / "pyproject.toml").write_text(layers, encoding="utf-8")
    floors = "| 3 | `top`: a |\n| 2 | `middle`: b; `low`: c |\n| 1 | `base`: d |\n| 0 | `ground`: e |\n"
    (tmp_path / "docs" / "architecture.md").write_text(floors, encoding="utf-8")
    before = architecture.picture(tmp_path)
    assert before.count('class="arrow"') == 1
    inside = "def late():\n    from progc.middle import something\n"
    (tmp_path / "progc" / "top" / "file.py").write_text(inside, encoding="utf-8")
    after = architecture.picture(tmp_path)
    assert after != before and after.count('class="arrow"') == 2
    assert architecture.counts(tmp_path).startswith("5 packages on 4 floors, 2 arrows, 0 of them not down; 6 files")
    (tmp_path / "progc" / "low" / "file.py").write_text("import progc.top", encoding="utf-8")
    assert "3 arrows, 1 of them not down" in architecture.counts(tmp_path)


# --- README and CONTRIBUTING ----------------------------------------------------------------------------------------


def test_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the smallest network that has what the lines speak of."""
    code, training = blocks(ROOT / "README.md", "python")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    digits = __import__("digits_vit")
    model, images = digits.DigitsViT(depth=2, width=192, heads=3), torch.rand(2, 1, 8, 8)
    lines = [line for line in code.splitlines() if not line.startswith("my_larger_model")]
    assert len(lines) == len(code.splitlines()) - 1 and 'to="vit_b"' in code
    larger = digits.DigitsViT(depth=12, width=192, heads=3)
    space: dict[str, object] = {"__name__": "example", "model": model, "images": images}
    exec(compile("\n".join(lines).replace("vit_b", "vit_t"), "README.md", "exec", dont_inherit=True), space)
    bigger = space["bigger"]
    assert isinstance(bigger, progc.Program)
    larger.load_state_dict(bigger.state_dict(), strict=True)
    model.eval(), larger.eval()
    with torch.no_grad():
        torch.testing.assert_close(larger(images), model(images))

    exec(compile(training, "README.md", "exec", dont_inherit=True), space | {"torch": torch}, space)
    stage, optimizer = space["stage"], space["optimizer"]
    assert isinstance(stage, progc.Program) and isinstance(optimizer, torch.optim.Optimizer)
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    assert held == {id(tensor) for _, tensor in stage.parameters() if tensor.requires_grad}


def test_python_of_the_guide_to_schedules_runs(tmp_path: Path) -> None:
    from progc.data.taskfile import load_task

    guide = ROOT / "docs" / "schedules.md"
    data, named, plan, strategy = blocks(guide, "python")
    execute(guide, named)
    execute(guide, plan)
    execute(guide, strategy)
    (tmp_path / "data.py").write_text(data, encoding="utf-8")
    task = load_task(tmp_path / "data.py")
    batch = next(task.batches(4, seed=0))
    assert task.at_size(batch, (4, 4))[0].shape == (4, 1, 4, 4) and task.inputs(batch)[0][0] is batch[0]
    assert task.loss(torch.zeros(4, 2), batch) > 0


def test_the_guide_to_schedules_knows_every_key() -> None:
    """Of the JSON file: a table cell names each."""
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8").partition("## The file")[2]
    schedule = made.searched()
    data = schedule.to_json()
    keys = {*data, *data["stages"][0], *data["stages"][0]["cost"], *data["model"], *data["space"]}
    keys |= {*data["decisions"][0], *data["decisions"][0]["candidates"][0], "sid", "depths", "widths", "resolution"}
    keys |= {field.name for field in dataclasses.fields(Regularisation)} - {"stage"}
    missing = {key for key in keys if f"`{key}`" not in text}
    assert missing <= {"stage"}, f"docs/schedules.md does not say what {missing} hold"


def test_exit_codes_of_the_readme() -> None:
    from progc import errors

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProgcError)]
    assert codes == {0, *(kind.exit_code for kind in kinds)}


def test_rule_of_the_contributors_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule the operation pins; with it the block's own assertions hold."""
    rules = dict(progc.analysis.axes.registry._RULES)
    rules.pop("cosine_similarity", None)
    monkeypatch.setattr(progc.analysis.axes.registry, "_RULES", rules)
    rule, check = blocks(ROOT / "CONTRIBUTING.md", "python")[:2]
    with pytest.raises(AssertionError, match="no rule for op aten.cosine_similarity"):
        execute(ROOT / "CONTRIBUTING.md", check)
    assert len(rule.splitlines()) <= 20
    execute(ROOT / "CONTRIBUTING.md", rule)
    execute(ROOT / "CONTRIBUTING.md", check)


def test_pass_of_the_contributors_guide_works() -> None:
    code = blocks(ROOT / "CONTRIBUTING.md", "python")[2]
    found = execute(ROOT / "CONTRIBUTING.md", code)["Round"]
    assert isinstance(found, type) and issubclass(found, Pass)
    assert not missing_parts(found)
    linear = torch.nn.Linear(2, 2)
    program = progc.capture(linear, (torch.rand(2, 2),))
    rounded = progc.apply(program, [found(digits=0)])
    assert torch.equal(rounded.tensors["weight"], linear.weight.round())


def test_guide_has_ten_rules() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE) == [str(number) for number in range(1, 11)]
