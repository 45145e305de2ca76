"""`progc.diff`: programs side by side, with changes made by hand and by passes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import progc
from progc.diffing.compare import distance, grouped, numbers
from progc.diffing.facts import Facts, describe_program
from progc.errors import InputError
from progc.files.writing import json_text
from progc.ir.deferred import defer
from progc.ir.program import Program
from tests import nets, zoo

# --- names as patterns ----------------------------------------------------------------------------------------------


def test_blocks_are_one_pattern() -> None:
    names = [f"blocks.{i}.{part}.weight" for i in range(12) for part in ("qkv", "fc1", "fc2")]
    assert [pattern for pattern, _ in grouped(names)] == ["blocks.{0-11}.qkv.weight", "blocks.{0-11}.fc{1-2}.weight"]
    assert sorted(name for _, members in grouped(names) for name in members) == sorted(names)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([], []),
        (["head", "head"], ["head"]),
        (["a.0", "a.2", "a.3", "a.9"], ["a.{0,2-3,9}"]),
        (["w1_0", "w1_1", "w2_0"], ["w{1-2}_0", "w1_1"]),  # w{1-2}_{0-1} would stand for w2_1 too
        (["w1_0", "w1_1", "w2_0", "w2_1"], ["w{1-2}_{0-1}"]),
        (["a.01", "a.1", "a.2"], ["a.01", "a.{1-2}"]),
        (["x10", "x9"], ["x{9-10}"]),
        (["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"], ["layer{1-2}.0.conv1", "layer1.1.conv1"]),
    ],
)
def test_patterns(names: list[str], patterns: list[str]) -> None:
    assert [pattern for pattern, _ in grouped(names)] == patterns


def expanded(pattern: str) -> set[str]:
    """Every name that a pattern stands for."""
    parts = re.split(r"\{([0-9,-]+)\}", pattern)
    choices = []
    for place, part in enumerate(parts):
        runs = [run.split("-") for run in part.split(",")] if place % 2 else []
        choices.append([str(n) for run in runs for n in range(int(run[0]), int(run[-1]) + 1)] if runs else [part])
    return {"".join(choice) for choice in itertools.product(*choices)}


WORDS = st.lists(st.sampled_from(["a", "b.", "1", "0", "02", ".", "_", "11"]), min_size=1, max_size=6).map("".join)


@given(st.lists(WORDS, max_size=12))
def test_a_pattern_stands_for_its_names_and_nothing_else(names: list[str]) -> None:
    found = grouped(names)
    assert all(expanded(pattern) == set(members) for pattern, members in found)
    members = [name for _, group in found for name in group]
    assert len(members) == len(set(members)) and set(members) == set(names)


def test_numbers() -> None:
    assert [numbers(values) for values in ([4], [0, 1, 2], [0, 2], [7, 5, 6, 1])] == ["4", "{0-2}", "{0,2}", "{1,5-7}"]


# --- values ---------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), None),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, -0.5]), 2.5),
        (torch.tensor(3), torch.tensor(-4), 7.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.tensor([0.0]), torch.tensor([-0.0]), 0.0),
        (torch.tensor([NAN, INF]), torch.tensor([NAN, INF]), None),
        (torch.tensor([1.0, INF]), torch.tensor([1.5, INF]), 0.5),
        (torch.tensor([1.0, NAN]), torch.tensor([1.5, 1.0]), INF),
        (torch.tensor([INF]), torch.tensor([-INF]), INF),
        (torch.tensor([1 + 2j]), torch.tensor([1 - 2j]), 4.0),
        (torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 2.5]).bfloat16(), 0.5),
        (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), torch.tensor([1.0, 4.0]).to(torch.float8_e4m3fn), 2.0),
        (torch.zeros(0, 3), torch.zeros(0, 3), None),
        (torch.arange(6.0).reshape(2, 3).t(), torch.arange(6.0).reshape(2, 3).t().contiguous(), None),
    ],
)
def test_distance(a: torch.Tensor, b: torch.Tensor, expected: float | None) -> None:
    assert distance(a, b) == distance(b, a) == expected
    assert distance(defer(lambda: a, a), defer(lambda: b, b)) == expected
    assert distance(a, a) is None


def test_large_tensors_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progc.diffing.compare._CHUNK", 7)
    a = torch.randn(5, 9)
    b = a.clone()
    b[4, 8] += 1
    assert distance(a, b) == pytest.approx(1.0)


# --- programs -------------------------------------------------------------------------------------------------------


def with_tensors(program: Program, **tensors: torch.Tensor) -> Program:
    return program.replace(tensors={**program.tensors, **{key.replace("__", "."): t for key, t in tensors.items()}})


def test_a_program_and_itself() -> None:
    for name in ("own:flat", "own:tied", "own:conv"):
        _, program = zoo.captured(name)
        found = progc.diff(program, program, graph=True)
        assert found.same and found.graph == "" and found.equal == len(program.tensors)
        assert not found.unknown and str(found).endswith("\n\nno difference")
        facts = describe_program(program)
        assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_values_changed_by_hand() -> None:
    _, program = zoo.captured("own:flat")
    moved = {f"w1_{i}": nn.Parameter(program.tensors[f"w1_{i}"].detach() + (0.25 if i else 2.0)) for i in range(4)}
    found = progc.diff(program, with_tensors(program, **moved, head_b=nn.Parameter(torch.full((7,), NAN))))
    assert not found.same and (found.equal, found.count("changed")) == (len(program.tensors) - 5, 5)
    blocks, bias = found.changed
    assert blocks.pattern == "w1_{0-3}" and blocks.max_abs_diff == pytest.approx(2.0)
    assert bias.pattern == "head_b" and bias.max_abs_diff == found.max_abs_diff == INF
    assert "\n    w1_{0-3}  [20, 12]  2.0e+00\n    head_b    [7]       inf" in str(found)
    assert not (found.added or found.removed or found.reshaped or found.axes or found.chains or found.froze)
    data = json.loads(json_text(found.to_json()))
    assert data["tensors"]["changed"] == 5 and data["tensors"]["groups"]["changed"][1]["max_abs_diff"] is None


def test_growth_in_depth_and_width() -> None:
    _, program = zoo.captured("own:flat")
    grown = progc.apply(program, "grow-depth{to=6},grow-width{mlp=*2}")
    found = progc.diff(program, grown, graph=True)
    assert (found.before.params, found.after.params) == (program.num_parameters(), grown.num_parameters())
    assert found.after.history == ("grow-depth{to=6}", "grow-width{mlp=*2}") and found.before.history == ()
    assert found.chains is not None and [(c.pattern, c.before, c.after) for c in found.chains] == [
        (program.chains.chains[0].name, 4, 6)
    ]
    assert found.axes is not None and ("w1_{0-3}", 20, 40) in [(a.pattern, a.before, a.after) for a in found.axes]
    assert {group.pattern: (group.before, str(group.after)) for group in found.added}["w1_{4-5}"] == (
        None,
        "f32[40, 12]",
    )
    reshaped = {group.pattern: (str(group.before), str(group.after)) for group in found.reshaped}
    assert reshaped["w1_{0-3}"] == ("f32[20, 12]", "f32[40, 12]")
    assert found.operations is not None and found.operations["eval"]["gelu"] == (4, 6)
    assert found.operations["train"] == found.operations["eval"]
    assert found.graph is not None and "--- FlatMixer, train graph\n" in found.graph.replace("tests.nets.", "")
    back = progc.diff(grown, program)
    assert back.count("removed") == found.count("added") and not back.added
    assert back.operations is not None and back.operations["eval"]["gelu"] == (6, 4)


def test_twelve_blocks_are_one_line() -> None:
    program = progc.capture(nets.EinsumTransformer(depth=12), (torch.randn(2, 6, 10),))
    lines = str(progc.diff(program, progc.apply(program, "grow-width{width=*2}"))).splitlines()
    assert [line.split() for line in lines if ".up.weight" in line] == [
        ["layers.{0-11}.up.weight", "[80,", "24]", "->", "[160,", "48]"]
    ]
    assert len(lines) < 40


def test_the_trainable_set() -> None:
    _, program = zoo.captured("own:flat")
    frozen = {f"w1_{i}": nn.Parameter(program.tensors[f"w1_{i}"].detach(), requires_grad=False) for i in range(3)}
    held = with_tensors(program, **frozen)
    found = progc.diff(program, held)
    assert not found.same and found.froze == ("w1_{0-2}",) and found.thawed == ()
    assert found.equal == len(program.tensors)
    assert (found.before.trainable, found.after.trainable) == (program.num_parameters(), program.num_parameters() - 720)
    assert "no longer trained  w1_{0-2}" in str(found)
    back = progc.diff(held, program)
    assert back.froze == () and back.thawed == ("w1_{0-2}",) and "trained again  w1_{0-2}" in str(back)
    assert progc.diff(held, held).same
    # The copies of a frozen block are frozen: they are listed, though nothing was there to freeze.
    assert progc.diff(held, progc.apply(held, "grow-depth{to=8}")).froze == ("w1_{3-5}",)


def test_ties_dtypes_and_tensors_that_no_file_holds() -> None:
    _, program = zoo.captured("own:tied")
    copy = nn.Parameter(program.tensors["embed.weight"].detach().clone())
    untied = with_tensors(program, head__weight=copy).replace(tied={})
    found = progc.diff(program, untied)
    assert found.untied == {"head.weight": "embed.weight"} and found.tied == {} and not found.same
    assert "head.weight is no longer tied to embed.weight" in str(found)
    assert progc.diff(untied, program).tied == {"head.weight": "embed.weight"}
    half = with_tensors(program, mix__bias=nn.Parameter(program.tensors["mix.bias"].detach().half()))
    (group,) = progc.diff(program, half).reshaped
    assert (str(group.before), str(group.after)) == ("f32[8]", "f16[8]")
    assert "mix.bias  f32[8] -> f16[8]" in str(progc.diff(program, half))


def test_another_resolution() -> None:
    small, large = (progc.capture(nets.FlatMixer(), (zoo.image(size),)) for size in (16, 24))
    found = progc.diff(small, large)
    assert re.search(r"^input x +f32\[2, 3, 16, 16\] -> f32\[2, 3, 24, 24\]$", str(found), re.MULTILINE)
    assert re.search(r"^output 0 +f32\[2, 7\]$", str(found), re.MULTILINE) and not found.same
    assert found.operations == {"train": {}, "eval": {}} and "the same operations with other arguments" in str(found)


def test_another_structure_of_inputs() -> None:
    batch = {"tokens": {"ids": torch.tensor([[1, 2]]), "extra": torch.ones(1, 2, 6)}}
    bare = progc.capture(nets.KeywordInputs(), (), {"batch": batch})
    masked = progc.capture(nets.KeywordInputs(), (), {"batch": batch, "mask": torch.ones(1, 2)})
    text = str(progc.diff(bare, masked))
    assert re.search(r"^input mask +none -> f32\[2, 2\]$", text, re.MULTILINE), text


def test_the_facts_of_a_report_must_be_facts() -> None:
    good = describe_program(zoo.captured("own:flat")[1]).to_json()
    for key, bad in (("chains", 3), ("inputs", [{}]), ("params", "many"), ("operations", {"eval": 1}), ("frozen", 2)):
        with pytest.raises(InputError, match="^`program` in a report cannot be read") as raised:
            Facts.from_json({**good, key: bad})
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="cannot be read"):
        Facts.from_json([1])
    assert Facts.from_json({}) == Facts()


def test_a_diff_is_a_value() -> None:
    _, program = zoo.captured("own:flat")
    found = progc.diff(program, program)
    assert isinstance(found, progc.ProgramDiff)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.equal = 3  # type: ignore[misc]
