"""Promises of the project itself: packaging, start-up, repository hygiene, documents that say the truth."""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from progc.models.sizes import PRESETS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for top in ("progc", "passes", "models") for path in (ROOT / top).rglob("*.py"))
PYTHON = sorted([*SOURCES, *(path for top in ("examples", "tests", "bench") for path in (ROOT / top).rglob("*.py"))])
FAMILIES = ("vit", "deit", "dit", "volo", "swin", "resnet", "convnext", "unet", "bert", "llama", "gpt")
FAMILY = re.compile(rf"(?<![a-z])({'|'.join(FAMILIES)})(?![a-z])", re.IGNORECASE)
MAX_LINES = 500


def name_of(path: Path) -> str:
    """The path from the root of the repository, for messages."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file; several checks read it."""
    return ast.parse(path.read_text(encoding="utf-8"))


def run_python(code: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter, without what the tests have imported."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=cwd, timeout=1800)


# --- start-up -------------------------------------------------------------------------------------------------------

TORCH_IMPORTED = """
import runpy, sys
{before}
try:
    runpy.run_module("progc", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("torch:", "torch" in sys.modules)
"""


def imports_torch(*args: str, before: str = "") -> bool:
    """Whether `progc ARGS` imports torch."""
    done = run_python(TORCH_IMPORTED.format(before=before), *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] == "torch: True"


@pytest.mark.parametrize("args", [("--version",), ("--help",)], ids=" ".join)
def test_light_commands_do_not_import_torch(args: tuple[str, ...]) -> None:
    assert not imports_torch(*args)


def test_the_check_above_can_fail() -> None:
    assert imports_torch("--version", before="import torch")


def test_version_is_the_packages_own() -> None:
    import progc

    done = run_python("import runpy; runpy.run_module('progc', run_name='__main__')", "--version")
    assert done.returncode == 0
    assert done.stdout.split() == ["progc", progc.__version__]


# --- packaging ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that no build output lands in the working tree."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("progc", "passes", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", out]
    done = subprocess.run(list(map(str, command)), cwd=copy, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_only_progc(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"progc"}
    expected = {name_of(path) for path in SOURCES}
    expected = {name if name.startswith("progc/") else f"progc/{name}" for name in expected}
    assert {name for name in names if name.endswith(".py")} == expected
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_unpacked_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = run_python("import progc.passes, progc.models; print(progc.passes.__file__)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "progc" / "passes" / "__init__.py")


def test_users_own_models_package_is_not_shadowed(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("mine = True\n", encoding="utf-8")
    done = run_python("import progc.models, models; assert models.mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "models.py").unlink()
    assert "ModuleNotFoundError" in run_python("import models", cwd=tmp_path).stderr


def test_every_import_is_a_declared_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    declared = set(re.findall(r'^\s*"([a-z]+)', listed[1], re.MULTILINE))
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^# Exact", text, re.MULTILINE | re.DOTALL)
    assert extras is not None
    declared |= set(re.findall(r'"([a-z-]+)"', extras[1])) | {"sklearn"}  # scikit-learn's module
    declared |= {"yaml"} if "pyyaml" in declared else set()  # the one whose module has another name
    allowed = declared | {"torchvision", "transformers", "progc", "__future__"} | set(sys.stdlib_module_names)
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            foreign = {module.split(".")[0] for module in modules} - allowed
            assert not foreign, f"{name_of(path)} imports {foreign}, which pyproject.toml does not declare"


# --- hygiene --------------------------------------------------------------------------------------------------------


def families_in(source: str) -> list[str]:
    """Names of model families in code and prose. A preset's name may occur in prose: users type it."""
    prose = re.compile(rf"\b({'|'.join(PRESETS)})\b")
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string
        if " " in text.strip():
            text = prose.sub("", text)
        if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            found += [f"line {token.start[0]}: {match[0]}" for match in FAMILY.finditer(text)]
    return found


def test_the_core_knows_no_model_family() -> None:
    for path in SOURCES:
        if not name_of(path).startswith("models/"):
            found = families_in(path.read_text(encoding="utf-8"))
            assert not found, f"{name_of(path)} names a model family: {found}"


@pytest.mark.parametrize("line", ["if kind == 'vit':", "swin_blocks = 3", "# as in ResNet-50", "x = 'vit_b'"])
def test_the_family_check_can_fail(line: str) -> None:
    assert families_in(line + "\n")


@pytest.mark.parametrize("line", ["help = 'a size preset (vit_b), or sizes'", "activity = edit + gptr", "# unbert"])
def test_the_family_check_lets_other_words_pass(line: str) -> None:
    assert not families_in(line + "\n")


def test_files_are_short_and_modules_have_docstrings() -> None:
    for path in PYTHON:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= MAX_LINES, f"{name_of(path)} has more than {MAX_LINES} lines"
        if source.strip() or path in SOURCES:
            assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring: what is it for?"


def test_top_of_the_package_holds_no_loose_modules() -> None:
    loose = {path.stem for path in (ROOT / "progc").glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "version"}, "a module belongs in a package: docs/architecture.md"


def public_classes(sources: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Public classes at the top of files, with the files that define them."""
    found: dict[str, list[str]] = {}
    for name, tree in sources.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return found


def repeated(classes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names that several files give to a class."""
    return {name: files for name, files in classes.items() if len(files) > 1}


def test_a_class_name_says_which_class() -> None:
    classes = public_classes({name_of(path): tree_of(path) for path in SOURCES})
    assert len(classes) > 200 and not repeated(classes)


def test_the_check_of_class_names_can_fail() -> None:
    a, b = ast.parse("class Place: ...\nclass _Search: ..."), ast.parse("class _Search: ...\nclass Place: ...")
    assert repeated(public_classes({"a.py": a, "b.py": b})) == {"Place": ["a.py", "b.py"]}


# --- walls ----------------------------------------------------------------------------------------------------------


def private_imports(tree: ast.Module) -> list[str]:
    """Private names (`_x`) and private modules that a file imports; `__version__` and the like are public."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                path = f"{module}.{alias.name}".lstrip(".")
                parts = path.split(".")
                if parts[0] == "progc" and any(re.match(r"_(?!_)", part) for part in parts):
                    found.append(path)
    return found


def test_no_private_name_is_imported_from_another_file() -> None:
    for path in SOURCES:
        found = private_imports(tree_of(path))
        assert not found, f"{name_of(path)} imports {found}: make it public, or move it"


def test_the_check_of_private_names_can_fail() -> None:
    planted = "def f():\n    from progc.ir.graphs import _walk, walk\nimport progc.ir._hidden\nfrom os import _exit\n"
    assert sorted(private_imports(ast.parse(planted))) == ["progc.ir._hidden", "progc.ir.graphs._walk"]
    assert not private_imports(ast.parse("from progc.version import __version__"))


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` with the contracts of pyproject.toml over the tree in `root`, as `make lint` runs it."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        str(ROOT / "pyproject.toml"),
        "--no-logo",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Every package of the contracts, with two empty files each."""
    listed = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert listed is not None
    for name in ["", *re.findall(r"\w+", listed[1])]:
        folder = tmp_path / "progc" / name
        folder.mkdir()
        for file in ("__init__.py", "one.py", "two.py") if name else ("__init__.py", "__main__.py"):
            (folder / file).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("cli/one.py", "import progc.ir.two", None),
        ("ir/one.py", "import progc.passes.two", "floors"),
        ("schedule/one.py", "def late():\n    from progc.search import two", "floors"),
        ("passes/one.py", "import progc.data.two", "floors"),  # neighbours on one floor
        ("train/two.py", "from progc.train import one", "no circles of files"),
        ("growth/one.py", "import progc.train.two", "the compiler knows no trainer"),
    ],
)
def test_contracts_of_imports(small_tree: Path, file: str, line: str, broken: str | None) -> None:
    (small_tree / "progc" / "train" / "one.py").write_text(
        "def late():\n    import progc.train.two\n", encoding="utf-8"
    )
    (small_tree / "progc" / file).write_text(line + "\n", encoding="utf-8")
    done = linted(small_tree)
    assert done.returncode == (broken is not None), done.stdout + done.stderr
    assert broken is None or re.search(rf"^{broken}.* BROKEN$", done.stdout, re.MULTILINE), done.stdout


def test_every_source_folder_is_a_package() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").is_file(), f"{name_of(folder)} has no __init__.py: wheels would leave it out"


def text_files() -> Iterator[tuple[Path, str]]:
    """Every text file of the project, this one apart."""
    tops = ("progc", "passes", "models", "examples", "tests", "docs", "bench", ".ci")
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for top in tops for path in (ROOT / top).rglob("*") if path.is_file()]
    for path in sorted(paths):
        if path.suffix not in (".pyc", ".safetensors", ".pt", ".png") and path != Path(__file__).resolve():
            yield path, path.read_text(encoding="utf-8")


def test_no_machine_paths_index_hosts_or_leftovers() -> None:
    banned = re.compile(
        r"/work/|/root/|/opt/(?:wheels|pypi)|index-url|find-links|pythonhosted|download\.pytorch"
        r"|\bTODO\b|\bFIXME\b|\bXXX\b"
    )
    for path, text in text_files():
        found = banned.search(text)
        assert not found, f"{name_of(path)} holds {found[0]!r}"


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


# --- documents ------------------------------------------------------------------------------------------------------


def code_blocks(path: Path) -> str:
    """The fenced blocks of a Markdown file."""
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_of_the_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", code_blocks(ROOT / document), re.MULTILINE))
    assert named and named <= targets


def test_readme_starts_with_the_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert first is not None
    assert re.findall(r"^make \w+", first[1], re.MULTILINE) == ["make demo", "make test"]


def test_commands_of_the_readme_exist() -> None:
    done = run_python("import runpy; runpy.run_module('progc', run_name='__main__')", "--help")
    offered = set(re.findall(r"^[\s│|]*([a-z]+)\s", done.stdout, re.MULTILINE))
    named = set(re.findall(r"^progc ([a-z]+)", code_blocks(ROOT / "README.md"), re.MULTILINE))
    assert named and named <= offered


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{name_of(path)} links to {link}, which does not exist"


def test_decision_records_are_numbered_and_state_their_cost() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text(encoding="utf-8")
        for heading in ("## Context", "## Choice", "## Cost"):
            assert heading in text, f"{name_of(path)} lacks {heading!r}"
