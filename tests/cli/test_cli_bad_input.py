"""Bad input, through the command line: exit code 2, one line on stderr, nothing on stdout, nothing left on disk."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.command import NET, Command, Outcome, files_below, in_subprocess

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(text, name="net.py")` puts a file into the test's folder."""

    def make(text: str, name: str = "net.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return make


@pytest.fixture
def refused(run: Command, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused as bad input; returns its one line."""

    def check(*arguments: str | Path, lines: int = 1) -> str:
        before = files_below(tmp_path)
        outcome = run(*arguments)
        assert_refused(outcome, lines)
        assert files_below(tmp_path) == before
        return outcome.err

    return check


def assert_refused(outcome: Outcome, lines: int = 1) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == lines, outcome.err
    assert outcome.err.startswith("progc: error: ")


def test_no_such_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in refused("grow", tmp_path / "none.py", "--to", "vit_b")
    assert "no such file" in refused("inspect", tmp_path / "none.py:Net")
    assert "is not a source" in refused("grow", "net", "--to", "vit_b")
    assert "did you mean timm?" in refused("grow", "tim:resnet18", "--to", "depth*2")


def test_a_file_with_a_syntax_error_names_the_line(refused: Callable[..., str], write: Write) -> None:
    path = write("import torch\n\ndef build(:\n    pass\n")
    assert f"{path}:3: syntax error: invalid syntax" in refused("grow", path, "--to", "vit_b")


def test_a_file_that_is_not_text(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(b"\xff\xfe\x00\x01")
    refused("grow", path, "--to", "vit_b")


def test_a_file_that_fails_on_import_names_the_line(refused: Callable[..., str], write: Write) -> None:
    path = write("import nonexistent_library\n")
    message = refused("grow", path, "--to", "vit_b")
    assert f"{path}:1: ModuleNotFoundError when the file is imported: No module named" in message
    path = write("import sys\nsys.exit(3)\n", "exits.py")
    assert "exits when it is imported" in refused("grow", path, "--to", "vit_b")


def test_a_file_without_a_model(refused: Callable[..., str], write: Write) -> None:
    assert "has no model: expected a function `build`" in refused("grow", write("x = 1\n"), "--to", "vit_b")


def test_two_candidates_are_both_named(refused: Callable[..., str], write: Write) -> None:
    path = write(NET + "\nclass Other(Net):\n    pass\n")
    assert f"has several models (Net, Other); choose one, such as {path}:Other" in refused(
        "grow", path, "--to", "vit_b"
    )


def test_an_unknown_name_in_a_file_is_suggested(refused: Callable[..., str], write: Write) -> None:
    path = write(NET)
    assert "has no `smal`; did you mean small?" in refused("grow", f"{path}:smal", "--to", "vit_b")
    assert "`torch` is a module; expected an nn.Module class" in refused("grow", f"{path}:torch", "--to", "vit_b")
    assert "has no name after the colon" in refused("grow", f"{path}:", "--to", "vit_b")


def test_a_constructor_that_needs_arguments(refused: Callable[..., str], write: Write) -> None:
    path = write(NET.replace("dim=8, depth=2", "dim, depth"))
    assert "the constructor of `Net` needs arguments (dim, depth); give them defaults, or write def build()" in refused(
        "grow", path, "--to", "vit_b"
    )
    path = write(NET.replace("def small()", "def build(size)"), "build.py")
    assert "`build` needs arguments (size)" in refused("grow", path, "--to", "vit_b")


def test_a_builder_that_fails_or_returns_something_else(refused: Callable[..., str], write: Write) -> None:
    path = write("def build():\n    return 1 / 0\n")
    assert f"{path}:2: ZeroDivisionError when the file builds the model: division by zero" in refused("inspect", path)
    path = write("def build():\n    return 1\n", "number.py")
    assert "`build` returned an int; expected an nn.Module" in refused("inspect", path)


def test_example_inputs_missing_and_not_derivable(refused: Callable[..., str], write: Write) -> None:
    path = write(NET.replace("def example_inputs", "def something_else"))
    message = refused("grow", path, "--to", "depth*2")
    assert "example inputs are missing and cannot be derived from Net; write in" in message
    path = write(NET.replace("return (torch.randn(2, 5),)", "return torch.randn(2, 5)"), "tensor.py")
    assert "example_inputs() returned a Tensor; expected a tuple" in refused("grow", path, "--to", "depth*2")


def test_unknown_names_of_libraries_are_suggested(refused: Callable[..., str]) -> None:
    message = refused("grow", "timm:vit_tinny_patch16_224", "--to", "vit_b")
    assert "timm has no model `vit_tinny_patch16_224`; did you mean vit_tiny_patch16_224" in message
    assert "did you mean" in refused("grow", "torchvision:resnet19", "--to", "depth*2")
    assert "did you mean dit_b" in refused("grow", "diffusers:dit_bb", "--to", "depth*2")
    assert "no such file" in refused("grow", "transformers:nowhere", "--to", "depth*2")
    assert "is not an image classifier" in refused("grow", "torchvision:fcn_resnet50", "--to", "depth*2")
    assert "expected the name of a model after the colon" in refused("grow", "timm:", "--to", "depth*2")


def test_an_unknown_target_is_suggested(refused: Callable[..., str], write: Write) -> None:
    path = write(NET)
    assert "unknown target `vit_bb`; did you mean vit_b" in refused("grow", path, "--to", "vit_bb")
    assert "expected a size preset (vit_t, vit_s" in refused("grow", path, "--to", "enormous")
    assert "`depth`: expected a positive number, got `twelve`" in refused("grow", path, "--to", "depth=twelve")


def test_a_target_smaller_than_the_source(refused: Callable[..., str], write: Write) -> None:
    path = write(NET)
    assert re.search(r"depth.*(small|shrink|at least|less)", refused("grow", path, "--to", "depth=1"))
    assert re.search(r"(small|shrink|at least|less)", refused("grow", path, "--to", "width=4"))
    assert re.search(r"(small|shrink|at least|less)", refused("grow", path, "--to", f"{path}:small"))
    assert "factor 0.5 of `depth` would shrink it" in refused("grow", path, "--to", "depth*0.5")


def test_a_width_that_a_constraint_forbids_names_the_nearest_allowed(refused: Callable[..., str], write: Write) -> None:
    path = write(
        """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv = nn.Linear(12, 36)
                self.out = nn.Linear(12, 12)
                self.head = nn.Linear(12, 2)

            def forward(self, x):
                q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
                y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
                return self.head(x + self.out(y.transpose(1, 2).flatten(2)))

        class Net2(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Linear(5, 12)
                self.net = Net()

            def forward(self, x):
                return self.net(self.embed(x))

        def build():
            return Net2()

        def example_inputs():
            return (torch.randn(2, 6, 5),)
        """
    )
    message = refused("grow", path, "--to", "width=13")
    assert "width=13" in message and "heads" in message
    assert re.search(r"nearest widths: 12, 15$", message)


def test_weights_that_do_not_fit_list_the_keys(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    path = write(NET)
    save_file({"embed.weight": torch.zeros(9, 5), "other.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    message = refused("grow", path, "--to", "depth*2", "--weights", tmp_path / "w.safetensors")
    assert "does not fit Net" in message
    assert "missing (embed.bias, blocks.0.norm.weight, blocks.0.norm.bias, ...)" in message
    assert "1 unexpected (other.bias)" in message
    assert "1 of another shape (embed.weight: [9, 5] in the file, [8, 5] in the model)" in message
    assert "no such file" in refused("grow", path, "--to", "depth*2", "--weights", tmp_path / "none.safetensors")


def test_an_ema_copy_that_does_not_fit(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    path = write(NET)
    save_file({"other.bias": torch.zeros(3)}, tmp_path / "ema.safetensors")
    assert "does not fit Net" in refused("grow", path, "--to", "depth*2", "--ema", tmp_path / "ema.safetensors")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all!"])
def test_a_corrupt_safetensors_file(refused: Callable[..., str], write: Write, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    message = refused("grow", write(NET), "--to", "depth*2", "--weights", tmp_path / "w.safetensors")
    assert "is not a readable safetensors file" in message


def test_a_cut_off_safetensors_file(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"embed.weight": torch.zeros(8, 5)}, file)
    file.write_bytes(file.read_bytes()[:-8])
    message = refused("grow", write(NET), "--to", "depth*2", "--weights", file)
    assert "is not a readable safetensors file" in message


def test_a_torch_file_with_pickled_objects(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "config": textwrap.TextWrapper()}, tmp_path / "w.pt")
    message = refused("grow", write(NET), "--to", "depth*2", "--weights", tmp_path / "w.pt")
    assert "holds pickled objects besides tensors" in message and "convert it: torch.save(" in message


def test_a_torch_file_that_is_damaged_or_no_state_dict(
    refused: Callable[..., str], write: Write, tmp_path: Path
) -> None:
    path, file = write(NET), tmp_path / "w.pt"
    file.write_bytes(b"junk")
    refused("grow", path, "--to", "depth*2", "--weights", file)
    torch.save(torch.zeros(3), file)
    assert "does not hold a state dict" in refused("grow", path, "--to", "depth*2", "--weights", file)


def test_an_output_folder_that_is_not_empty(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    path = write(NET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep me")
    assert "is not empty; give a new name" in refused("grow", path, "--to", "depth*2", "--out", tmp_path / "full")
    assert "is not a folder" in refused("grow", path, "--to", "depth*2", "--out", path)


def test_an_output_folder_that_cannot_be_written(refused: Callable[..., str], write: Write, tmp_path: Path) -> None:
    # Not by permissions, which do not hold for root: below a file, no folder can be made.
    path = write(NET)
    message = refused("grow", path, "--to", "depth*2", "--out", path / "out")
    assert f"output folder {path / 'out'} cannot be written (Not a directory in" in message
    refused("apply", path, "--pipeline", "grow-depth{to=*2}", "--out", path / "a" / "b")
    if os.path.isdir("/proc/self"):
        assert "cannot be written" in refused("grow", path, "--to", "depth*2", "--out", "/proc/self/out")


def test_data_dependent_control_flow_names_file_and_line(refused: Callable[..., str], write: Write) -> None:
    path = write(
        """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(5, 3)

            def forward(self, x):
                if x.sum() > 0:
                    return self.head(x)
                return -self.head(x)

        def example_inputs():
            return (torch.randn(2, 5),)
        """
    )
    message = refused("grow", path, "--to", "width*2")
    assert f"{path.name}" in message and "11" in message


@pytest.mark.parametrize(
    ("pipeline", "caret"),
    [("grow-dept{to=4}", 0), ("grow-depth{too=4}", 11), ("grow-depth{to=4", 10), ("grow-depth{to=4}}", 16)],
)
def test_a_bad_pipeline_text_has_a_caret_under_the_place(
    refused: Callable[..., str], write: Write, pipeline: str, caret: int
) -> None:
    lines = refused("apply", write(NET), "--pipeline", pipeline, lines=3).splitlines()
    assert lines[1] == pipeline
    assert lines[2] == " " * caret + "^"


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("random", "init `random` exists for width and depth; name the kind, as in width=random"),
        ("copie", "unknown init `copie`; did you mean copy?"),
        ("width=identity", "unknown init `width=identity`; expected width=copy|zero|random"),
        ("height=copy", "got the kind `height`"),
        ("width=copy,zero", "gives width twice"),
        ("source=all", "source is for depth=mogrow; write depth=mogrow,source=all"),
        ("depth=stack,ema=0.9", "ema is for depth=mogrow; write depth=mogrow,ema=0.9"),
        ("depth=mogrow,source=old", "init `source=old`: expected new or all"),
        ("depth=mogrow,ema=2", "init `ema=2`: expected a decay such as 0.9996"),
    ],
)
def test_a_bad_init(refused: Callable[..., str], write: Write, init: str, message: str) -> None:
    assert message in refused("grow", write(NET), "--to", "depth*2", "--init", init)


def test_an_init_without_its_pass(refused: Callable[..., str], write: Write) -> None:
    arguments = ("apply", write(NET), "--pipeline", "grow-width{width=*2}", "--init")
    assert "the pipeline has no grow-depth; add it, or remove depth= from" in refused(*arguments, "depth=stack")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["gorw"], "No such command 'gorw'"),
        (["grow"], "SOURCE"),
        (["grow", "timm:resnet18"], "--to"),
        (["grow", "timm:resnet18", "--to", "depth*2", "--sed", "1"], "--sed"),
        (["grow", "timm:resnet18", "--to", "depth*2", "--seed", "one"], "Invalid value for '--seed'"),
        (["passes", "grow-dept"], "did you mean"),
    ],
)
def test_wrong_use_is_one_line_too(refused: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_a_folder_that_nobody_wrote(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is a folder without report.json" in refused("inspect", tmp_path)
    (tmp_path / "report.json").write_text("[1]")
    assert "expected a JSON object" in refused("inspect", tmp_path)
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert "is not a readable safetensors file" in refused("inspect", tmp_path)
    assert "holds no graph" in refused("inspect", tmp_path, "--axes")


def test_json_and_debug_change_neither_code_nor_stdout(run: Command, tmp_path: Path) -> None:
    outcome = run("grow", tmp_path / "none.py", "--to", "vit_b", "--json")
    assert_refused(outcome)
    outcome = run("grow", tmp_path / "none.py", "--to", "vit_b", "--debug")
    assert outcome.code == 2 and outcome.out == ""
    assert "Traceback" in outcome.err and outcome.err.splitlines()[-1].startswith("progc: error: no such file")


def test_the_real_process_behaves_the_same(write: Write, tmp_path: Path) -> None:
    path = write("print('hello from the file')\nx = 1\n")
    outcome = in_subprocess(["grow", path.name, "--to", "vit_b", "--json"], cwd=tmp_path)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.splitlines()[0] == "hello from the file"
    assert len(outcome.err.splitlines()) == 2
    assert files_below(tmp_path) == {"net.py"}
