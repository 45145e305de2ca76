"""What commands print and what passes do to graphs, as golden files: read the difference after --update-golden."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import progc
from progc.ir.printer import print_graph
from progc.ir.program import Mode, Program
from progc.models.opening import open_source
from progc.pipeline.registry import PASSES
from tests import golden_files
from tests.command import Command, Outcome, in_process

ROOT = Path(__file__).resolve().parents[2]
Golden = Callable[[str, str], None]

COMMANDS: dict[str, str] = {
    "cli/passes.txt": "passes",
    "cli/passes_grow_depth.txt": "passes grow-depth",
    "cli/passes_grow_width.txt": "passes grow-width",
    "cli/passes_inject_sid.txt": "passes inject-sid",
    "cli/passes_remove_sid.txt": "passes remove-sid",
    "cli/passes_freeze.txt": "passes freeze",
    "cli/passes_grow_resolution.txt": "passes grow-resolution",
    "cli/passes_shrink.txt": "passes shrink",
    "cli/passes_set_drop.txt": "passes set-drop",
    "cli/inspect_axes.txt": "inspect examples/digits_vit.py --axes",
    "cli/inspect_chains.txt": "inspect examples/digits_vit.py --chains",
    "cli/inspect_graph.txt": "inspect examples/digits_vit.py --graph",
    "cli/diff_growth.txt": "diff examples/digits_vit.py --pipeline grow-depth{to=6},grow-width{width=*2}",
    "cli/diff_itself.txt": "diff examples/digits_vit.py examples/digits_vit.py",
    "cli/diff_graph.txt": "diff examples/custom_pass.py --pipeline grow-width{axes=up:9} --graph",
}

FLAGS = "cli/flags.txt"

# Golden file to network of NET and pipeline; the first three of a pass are: something happens, nothing does, refused.
STORIES: dict[str, tuple[str, str]] = {
    "grow_depth/normal.txt": ("Net", "grow-depth{to=3}"),
    "grow_depth/unchanged.txt": ("Net", "grow-depth{to=2}"),
    "grow_depth/refused.txt": ("PostNorm", "grow-depth{to=3}"),
    "grow_depth/stack.txt": ("Net", "grow-depth{to=3 init=stack}"),
    "grow_depth/mogrow.txt": ("Net", "grow-depth{to=3 init=mogrow}"),
    "grow_depth/no_such_chain.txt": ("Net", "grow-depth{chains=blokcs}"),
    "freeze/normal.txt": ("Net", "freeze{prefix=1 stem=true measure=false}"),
    "freeze/unchanged.txt": ("Net", "freeze{level=4}"),
    "freeze/refused.txt": ("Net", "freeze{prefix=3}"),
    "freeze/level_out_of_range.txt": ("Net", "freeze{level=5}"),
    "freeze/no_such_selector.txt": ("Net", "freeze{freeze=blokcs.0}"),
    "freeze/no_such_kind.txt": ("Net", "freeze{only=atention}"),
    "freeze/nothing_left.txt": ("Net", "freeze{freeze=*}"),
    "freeze/stem_trains.txt": ("Net", "freeze{prefix=1 measure=false}"),
    "grow_width/normal.txt": ("Net", "grow-width{width=8}"),
    "grow_width/unchanged.txt": ("Net", "grow-width{width=4}"),
    "grow_width/refused.txt": ("PostNorm", "grow-width{axes=embed:6}"),
    "grow_width/one_more_unit.txt": ("Net", "grow-width{axes=blocks.0.up:7 init=zero}"),
    "grow_width/pinned_axis.txt": ("Net", "grow-width{axes=head:6}"),
    "grow_width/no_such_axis.txt": ("Net", "grow-width{axes=blocks.0.upp:7}"),
    "inject_sid/normal.txt": ("Net", "inject-sid"),
    "inject_sid/unchanged.txt": ("Net", "inject-sid{stages=0}"),
    "inject_sid/refused.txt": ("Net", "inject-sid{form=token}"),
    "inject_sid/fixed.txt": ("Net", "inject-sid{stages=2 stage=1 dropout=0.0}"),
    "inject_sid/no_such_site.txt": ("Net", "inject-sid{site=conditioning}"),
    "inject_sid/twice.txt": ("Net", "inject-sid,inject-sid"),
    "remove_sid/normal.txt": ("Net", "inject-sid{stage=3 init=normal dropout=0.0},grow-depth{to=3},remove-sid"),
    "remove_sid/unchanged.txt": ("Net", "remove-sid"),
    "remove_sid/refused.txt": ("Net", "inject-sid{site=gelu stage=1},remove-sid"),
    "grow_resolution/normal.txt": ("Image", "grow-resolution{to=12x16}"),
    "grow_resolution/unchanged.txt": ("Image", "grow-resolution{to=8}"),
    "grow_resolution/refused.txt": ("Image", "grow-resolution{to=14}"),
    "shrink/normal.txt": ("Net", "shrink{depth=1 width=2}"),
    "shrink/unchanged.txt": ("Net", "shrink{depth=2}"),
    "shrink/refused.txt": ("Net", "shrink{depth=3}"),
    "shrink/width.txt": ("Net", "shrink{width=3}"),
    "set_drop/normal.txt": ("Dropping", "set-drop{path=0.1 ramp=linear}"),
    "set_drop/unchanged.txt": ("Dropping", "set-drop{path=0.4}"),
    "set_drop/refused.txt": ("Net", "set-drop{path=0.1}"),
    "set_drop/zero.txt": ("Dropping", "set-drop{path=0.0}"),
}

# Golden file to network (of NET, or a file), options and exit code: chains of reasons, of a refusal with its last line.
REASONS: dict[str, tuple[str, str, int]] = {
    "cli/explain_residual.txt": ("examples/digits_vit.py", "--to width=384 --explain patches", 0),
    "cli/explain_heads.txt": ("examples/digits_vit.py", "--to heads=6,width=384 --explain blocks.0.attention.qkv.*", 0),
    "cli/explain_head_dim.txt": ("examples/digits_vit.py", "--to head_dim=128 --explain blocks.0.attention.*", 0),
    "cli/explain_hidden.txt": ("examples/digits_vit.py", "--to mlp=800 --init width=zero --explain blocks.0.expand", 0),
    "cli/explain_positions.txt": ("examples/digits_vit.py", "--to patches.2=8 --explain patches.2", 2),
    "cli/explain_classes.txt": ("examples/digits_vit.py", "--to head=20 --explain all", 2),
    "cli/explain_post_norm.txt": ("net.py:PostNorm", "--to embed=6 --explain embed", 1),
    "cli/explain_group_norm.txt": ("net.py:Grouped", "--to stem=6 --explain all", 1),
    "cli/explain_pad.txt": ("net.py:Net", "--to embed=6 --explain embed", 0),
    "cli/explain_lossy.txt": ("net.py:PostNorm", "--to embed=6 --lossy --explain embed", 0),
    "cli/explain_unknown.txt": ("net.py:Net", "--to width=8 --explain embde", 2),
}

NET = """
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

class Block(nn.Module):
    def __init__(self, width, heads, post_norm):
        super().__init__()
        self.heads, self.post_norm = heads, post_norm
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x):
        y = x if self.post_norm else self.norm(x)
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = x + y + self.down(gelu(self.up(x)))
        return self.norm(y) if self.post_norm else y

class Net(nn.Module):
    def __init__(self, width=4, heads=2, post_norm=False):
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.Sequential(*(Block(width, heads, post_norm) for _ in range(2)))

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))

def PostNorm():
    return Net(post_norm=True)

class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv1d(8, 2, 1)

    def forward(self, x):
        return self.head(gelu(self.norm(self.stem(x))))

class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            y = block(x)
            if self.training and number:
                y = y * y.new_empty(y.shape[0], 1, 1).bernoulli_(0.6).div_(0.6)
            x = x + y
        return x

def example_inputs():
    return (torch.randn(2, 3, 5),)
"""

IMAGE_NET = """
import torch
from torch import nn

class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 2)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.zeros(1, 5, 6))

    def forward(self, x):
        x = self.embed(x)
        batch, units, height, width = x.shape
        x = x.reshape(batch, units, height * width).transpose(1, 2)
        return self.head(torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.positions)

def example_inputs():
    return (torch.randn(2, 3, 8, 8),)
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(ROOT)
    return in_process(capsys)


@pytest.mark.parametrize("path", COMMANDS)
def test_commands_print(run: Command, golden: Golden, path: str) -> None:
    outcome = run(*COMMANDS[path].split())
    assert outcome.code == 0, outcome.err
    golden(path, f"$ progc {COMMANDS[path]}\n{outcome.out}")


def test_flags_are_frozen(run: Command, golden: Golden) -> None:
    """A new flag is a promise: it shows up here before it ships. The wording of help is not frozen."""
    commands = re.findall(r"^  ([a-z]+)  ", run("--help").out.partition("Commands:")[2], re.MULTILINE)
    lines = []
    for command in ["", *commands]:
        text = run(*command.split(), "--help").out
        flags = re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE)
        lines.append(" ".join(["progc", *command.split(), *flags]))
    golden(FLAGS, "\n".join(lines) + "\n")


_CAPTURED: dict[str, Program] = {}


def captured(source: str, name: str) -> Program:
    """The network of a file, captured once: each test writes the same file to a folder of its own."""
    if name not in _CAPTURED:
        opened = open_source(source)
        model = opened.build()
        _CAPTURED[name] = progc.capture(model, *opened.example(model))
    return _CAPTURED[name]


@pytest.mark.parametrize("path", STORIES)
def test_passes_do(run: Command, golden: Golden, tmp_path: Path, path: str) -> None:
    """The command, what it says, and if it succeeds the graph before and after."""
    name, pipeline = STORIES[path]
    file = tmp_path / "net.py"
    file.write_text(IMAGE_NET if name == "Image" else NET)
    outcome = run("apply", f"{file}:{name}", "--pipeline", pipeline)
    lines = [f"$ progc apply net.py:{name} --pipeline '{pipeline}'", *said(outcome), f"exit code {outcome.code}"]
    if outcome.code == 0:
        before = captured(f"{file}:{name}", name)
        after = progc.apply(before, pipeline)
        mode: Mode = "train" if name == "Dropping" else "eval"
        alike = print_graph(before, "train").count("\n") == print_graph(before).count("\n")
        assert alike or mode == "train", "one graph says it all"
        same = print_graph(after, mode) == print_graph(before, mode)
        lines += ["", "before:", print_graph(before, mode), "after: " + ("the same" if same else "")]
        lines += [] if same else [print_graph(after, mode)]
    golden(path, "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n")


@pytest.mark.parametrize("path", REASONS)
def test_growth_explains(
    run: Command, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    source, options, code = REASONS[path]
    if source.startswith("net.py"):
        monkeypatch.chdir(tmp_path)  # so that places in the file are short
        Path("net.py").write_text(NET)
    outcome = run("grow", source, *options.split())
    assert outcome.code == code, outcome.err
    chain = outcome.out.partition("\n\n")[2].rpartition("\n\n")[0] if code == 0 else outcome.out
    lines = [f"$ progc grow {source} {options}", *chain.splitlines()]
    lines += [outcome.err.splitlines()[-1], f"exit code {code}"] if code else []
    golden(path, "\n".join(lines) + "\n")


def said(outcome: Outcome) -> list[str]:
    """Result and message of a command, without measured numbers and times."""
    told = [line for line in outcome.out.splitlines() if not line.startswith("difference:")]
    return told + (outcome.err.splitlines()[-1:] if outcome.code else [])


def test_every_pass_has_golden_files_and_every_file_is_used() -> None:
    for name in PASSES:
        folder = name.replace("-", "_")
        wanted = {f"{folder}/{case}.txt" for case in ("normal", "unchanged", "refused")}
        assert wanted <= STORIES.keys(), f"{name} has no golden files {sorted(wanted - STORIES.keys())}"
        assert all(name in STORIES[path][1] for path in STORIES if path.startswith(f"{folder}/"))
    folders = {"cli", *(name.replace("-", "_") for name in PASSES)}
    there = {
        path.relative_to(golden_files.FOLDER).as_posix()
        for folder in folders
        for path in (golden_files.FOLDER / folder).rglob("*")
        if path.is_file()
    }
    assert there == {*COMMANDS, FLAGS, *STORIES, *REASONS}


@pytest.mark.parametrize(("path", "codes"), [("normal", "0"), ("unchanged", "0"), ("refused", "12")])
def test_golden_files_show_what_their_names_say(path: str, codes: str) -> None:
    for name in PASSES:
        text = (golden_files.FOLDER / name.replace("-", "_") / f"{path}.txt").read_text(encoding="utf-8")
        assert re.search(rf"\nexit code [{codes}]\n", text)
        assert (": unchanged\n" in text) == ("after: the same\n" in text) == (path == "unchanged")
