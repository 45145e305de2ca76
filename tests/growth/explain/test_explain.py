"""Explanations say what the plan and the lift did: each statement is compared with the grown tensors or the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import InputError
from progc.growth.explain.reasons import Explanation, axis_names, explain
from progc.growth.explain.text import explanation_text
from progc.growth.grow import Growth, grow_with_report
from progc.ir.program import Program
from progc.models.sizes import parse_sizes
from progc.pipeline.text import parse_inits
from progc.transforms.width.plan import plan_widths
from tests import nets
from tests.analysis.axes.growth import program_of
from tests.command import NET, Command
from tests.zoo import captured


def planned(program: Program, sizes: dict[str, int], init: str = "copy") -> dict[str, Explanation]:
    plan = plan_widths(program, sizes, init=init)
    return {item.axis: item for item in explain(program, plan.growths, plan.lift, plan.obstacles)}


def doubled(program: Program, init: str = "copy") -> dict[str, Explanation]:
    return planned(program, {axis.name: 2 * axis.size for axis in program.axes.growable}, init)


def grown(program: Program, text: str, init: str = "", lossy: bool = False) -> Growth:
    return grow_with_report(program, parse_sizes(text), inits=parse_inits(init) if init else {}, lossy=lossy)


POST_NORM = """
class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.norm, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.embed(x))
        return self.head(self.norm(x + torch.relu(self.fc(x))))
"""

NETWORKS = ["own:einsum", "own:flat", "own:conv", "torchvision:vit", "transformers:gpt2"]


@pytest.mark.parametrize("name", NETWORKS)
def test_sides_are_those_of_the_table(name: str) -> None:
    program = captured(name)[1]
    for item in doubled(program).values():
        axis = program.axes[item.axis]
        if item.kind == "pinned":
            assert not axis.growable and item.obstacle == axis.reason and not item.consumers
            continue
        read = {(span.tensor, span.dim) for span in axis.spans if "consumer" in span.sides}
        made = {(span.tensor, span.dim) for span in axis.spans if "producer" in span.sides}
        assert {(side.tensor, side.dim) for side in item.consumers} == read
        assert {(side.tensor, side.dim) for side in item.producers} == made
        assert item.new == 2 * item.old and item.kind == "copy" and item.obstacle is None


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_and_sums_are_the_conditions_of_the_table(name: str) -> None:
    program = captured(name)[1]
    for item in doubled(program).values():
        if item.kind != "pinned":
            told = [norm.condition for norm in (*item.norms, *item.contractions)]
            assert set(told) == set(program.axes[item.axis].conditions)
            assert all(norm.holds for norm in item.norms)


@pytest.mark.parametrize("name", ["own:einsum", "torchvision:vit", "transformers:gpt2"])
def test_factors_are_what_the_lift_multiplies_by(name: str) -> None:
    """Copies of an old entry have the told factor on average, and entries that take none keep their value."""
    program = captured(name)[1]
    heads = {axis.name: 2 * axis.size for axis in program.axes.growable if axis.meaning == "head dim"}
    plan = plan_widths(program, heads, noise=0.0)
    assert plan.lossless
    tensors = plan.lift.apply(program.tensors)
    entries = {entry.name: entry for entry in plan.lift.tensors}
    seen = 0
    for item in explain(program, plan.growths, plan.lift):
        owing = item.axis in heads and bool(item.contractions)
        assert bool(item.factors) == owing
        for factor in item.factors:
            old, new = program.tensors[factor.tensor].double(), tensors[factor.tensor].double()
            for dim, index_map in enumerate(entries[factor.tensor].dims):
                if dim != factor.dim and index_map is not None:
                    pytest.fail("a consumer's share on another dim would have to be taken out first")
            index_map = entries[factor.tensor].dims[factor.dim]
            back = old.index_select(factor.dim, index_map.index()) if index_map is not None else old
            ratio = (new / back).movedim(factor.dim, 0)
            ratio = ratio.reshape(len(ratio), -1).mean(1)
            changed = (ratio - factor.factor).abs() < 1e-5
            assert changed.any() and ((ratio - 1).abs()[~changed] < 1e-5).all()
            if factor.entries == "all":
                assert changed.all()
            else:
                count = factor.entries.partition(" of ")[0]
                first, _, last = count.partition(" to ")
                number = int(last) - int(first) + 1 if last else int(count)
                assert int(changed.sum()) == 2 * number
            seen += 1
    assert seen


def test_a_tied_table_names_the_tensor_that_pays() -> None:
    item = doubled(captured("transformers:gpt2")[1])["transformer.wte"]
    how = {(side.tensor, side.dim): side.how for side in item.consumers}
    assert how["transformer.wte.weight", 1] == "cannot divide its weights: it also makes the axis"
    assert {factor.tensor for factor in item.factors} == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert all("transformer.wte.weight makes the axis and sums over it" in factor.because for factor in item.factors)


def test_the_obstacle_is_the_plans_own_and_ends_the_chain() -> None:
    program = captured("own:tied")[1]
    plan = plan_widths(program, {"embed": 16})
    (item,) = explain(program, plan.growths, plan.lift, plan.obstacles, ["embed"])
    assert item.obstacle == plan.obstacles[0]
    assert item.obstacle_at is not None and item.obstacle_at.op == "aten.linear" and item.obstacle_at.module == "head"
    assert explanation_text([item]).splitlines()[-1].startswith(f"  not exact: {item.obstacle} (aten.linear at ")


def test_kinds_of_new_units() -> None:
    program = captured("own:flat")[1]
    hidden = next(axis.name for axis in program.axes.growable if axis.meaning == "hidden width")
    texts = {}
    for init in ("copy", "zero", "random"):
        (item,) = (i for i in planned(program, {hidden: 30}, init).values() if i.axis == hidden)
        texts[init] = explanation_text([item])
    assert "copy: 10 of 20 units occur twice, the others once" in texts["copy"]
    assert "free: new units are new functions of the input" in texts["zero"]
    assert "weights of new units are zero: it ignores them" in texts["zero"]
    assert "new entries are drawn at random" in texts["zero"]
    assert texts["random"].splitlines()[-1] == "  not exact: random new units change the function"


def test_a_kind_that_is_not_known_here_is_told_in_its_own_words() -> None:
    from progc.transforms.width.widening import AxisGrowth

    program = captured("own:flat")[1]
    plan = plan_widths(program, {"stem_w": 24})
    growth = AxisGrowth("stem_w", 12, 24, "another", "of a reason")
    (item,) = explain(program, [growth], plan.lift, names=["stem_w"])
    text = explanation_text([item])
    assert "another: of a reason" in text and "as for another" in text


class Pinned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.softmax(self.up(x), dim=-1))


def test_a_pin_names_operation_node_module_and_line() -> None:
    program = program_of(Pinned(), torch.randn(2, 4))
    items = {item.axis: item for item in explain(program)}
    (pin,) = items["up"].pins
    assert pin.reason == "softmax runs over it" and pin.place is not None
    assert (pin.place.op, pin.place.node, pin.place.module) == ("aten.softmax", "softmax", "")
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[int(pin.place.line.rpartition(":")[2]) - 1]
    assert "torch.softmax(self.up(x)" in line
    assert [(pin.reason, pin.place) for pin in items["down"].pins] == [("it is an output of the network", None)]


def test_a_reason_that_moves_to_another_axis_keeps_its_place() -> None:
    """The sum makes both one axis after the cumulative sum has pinned one of them."""

    class Moved(Pinned):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.side(x) + self.up(x).cumsum(-1))

    (pin,) = explain(program_of(Moved(), torch.randn(2, 4)), names=["side"])[0].pins
    assert pin.place is not None and pin.place.op == "aten.cumsum"


# -- the report --------------------------------------------------------------------------------------------


def test_the_report_has_an_entry_for_every_axis_that_grew_or_may_not() -> None:
    program = captured("torchvision:vit")[1]
    growth = grown(program, "width*2")
    entries = {entry["axis"]: entry for entry in growth.report["axes"]}
    json.dumps(growth.report)
    assert {g.axis for g in growth.plan.axes} == {name for name, e in entries.items() if e["kind"] != "pinned"}
    pinned = {axis.name for axis in program.axes.axes if not axis.growable}
    assert pinned == {name for name, entry in entries.items() if entry["kind"] == "pinned"}
    for entry in entries.values():
        assert (entry["obstacle"] is None) == (entry["kind"] != "pinned")
        assert entry.keys() == {
            "axis", "meaning", "old", "new", "kind", "why", "producers", "consumers", "norms", "contractions",
            "factors", "sizes", "pins", "obstacle",
        }  # fmt: skip
    assert growth.report["lossless"] is True


def test_lossy_growth_reports_its_obstacles_by_axis() -> None:
    program = captured("transformers:bert_mlm")[1]
    stream = next(axis for axis in program.axes.growable if axis.meaning == "residual width")
    hidden = next(axis for axis in program.axes.growable if axis.meaning == "hidden width")
    growth = grown(program, f"{stream.name}={stream.size + 8},{hidden.name}={hidden.size + 8}", lossy=True)
    entries = {entry["axis"]: entry for entry in growth.report["axes"]}
    assert entries[stream.name]["obstacle"] in growth.report["reasons"]
    assert entries[hidden.name]["obstacle"] is None
    assert not any(norm["holds"] for norm in entries[stream.name]["norms"])


def test_a_choice_of_kind_is_no_obstacle() -> None:
    growth = grown(captured("torchvision:vit")[1], "width*2", "width=zero")
    whys = [entry["why"] for entry in growth.report["axes"] if entry["kind"] == "copy"]
    assert any(why.startswith("new units would not be exact") for why in whys)
    assert all(entry["obstacle"] is None for entry in growth.report["axes"] if entry["kind"] != "pinned")


def test_growth_in_depth_alone_has_no_axes_to_explain() -> None:
    assert grown(captured("own:einsum")[1], "depth*2").report["axes"] == []


# -- names and words ---------------------------------------------------------------------------------------


def test_axes_by_name_by_pattern_and_near_misses() -> None:
    program = captured("own:einsum")[1]
    names = [axis.name for axis in program.axes.axes]
    assert axis_names(program, names[0]) == [names[0]]
    assert axis_names(program, "layers.*.up") == [name for name in names if name.endswith(".up")]
    with pytest.raises(InputError, match=r"no axis is called `layers.0.upp`; did you mean layers.0.up"):
        axis_names(program, "layers.0.upp")


def test_blocks_that_differ_in_a_number_share_a_line() -> None:
    program = progc.capture(nets.EinsumTransformer(), (torch.randn(2, 6, 10),))
    text = explanation_text(explain(program, names=["embed"]))
    assert "\n  made by layers.{0..2}.down.weight dim 0\n" in text
    assert "\n  passes aten.mean at layers.{0..2}.before_mlp (" in text
    assert text.count("\n") < 20
    assert "[" not in text or "{" in text  # nothing that a terminal would take for markup


# -- the command line --------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET + POST_NORM)
    return path


def test_grow_explains_before_the_summary(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "depth*2,width*2", "--explain", "blocks.*")
    assert outcome.code == 0, outcome.err
    plan, *chains, summary = outcome.out.split("\n\n")
    assert plan.startswith("growth plan") and summary.startswith("parameters")
    assert sorted(chain.split(":")[0] for chain in chains) == [f"blocks.{i}.fc1" for i in range(4)]  # new blocks too
    assert all(chain.endswith("  exact: no sum over it changes") for chain in chains)


def test_all_is_every_axis_that_grows(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "blocks.0.fc1=20", "--explain", "all")
    assert "blocks.0.fc1: 16 -> 20" in outcome.out and "embed:" not in outcome.out
    assert "no axis grows" in run("grow", f"{net}:Net", "--to", "depth*2", "--explain", "all").out
    everything = run("inspect", f"{net}:Net", "--explain", "all").out
    assert "head: 3 (hidden width)\n  pinned: it cannot grow\n  pinned: it is an output of the network" in everything
    assert "embed: 8 (residual width)\n  stays: it can grow" in everything


def test_an_axis_that_the_target_leaves_alone(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "blocks.0.fc1=20", "--explain", "embed")
    assert outcome.code == 0 and "embed: 8 (residual width)\n  stays: it can grow" in outcome.out


def test_a_refusal_is_explained_and_its_error_is_the_last_line(run: Command, net: Path, tmp_path: Path) -> None:
    plain = run("grow", f"{net}:PostNorm", "--to", "embed=12")
    outcome = run("grow", f"{net}:PostNorm", "--to", "embed=12", "--explain", "all", "--out", tmp_path / "out")
    assert outcome.code == plain.code == 1 and outcome.err == plain.err and plain.out == ""
    assert not (tmp_path / "out").exists()
    last = outcome.out.splitlines()[-1]
    assert last.startswith("  not exact: embed: 8 to 12 is not an integer factor") and " in norm" in last
    data = json.loads(run("grow", f"{net}:PostNorm", "--to", "embed=12", "--explain", "all", "--json").out)
    assert data["axes"][0]["obstacle"] == last.removeprefix("  not exact: ").partition(" (aten.layer_norm at")[0]


def test_a_pinned_axis_is_explained_and_refused(run: Command, net: Path) -> None:
    outcome = run("grow", f"{net}:Net", "--to", "head=6", "--explain", "all")
    assert outcome.code == 2 and outcome.out.splitlines()[-1] == "  pinned: it is an output of the network"
    assert (
        outcome.err.splitlines()[-1]
        == "progc: error: axis head (size 3) cannot grow to 6: it is an output of the network"
    )


def test_refusals_before_widths_are_known(run: Command, net: Path) -> None:
    plain = run("grow", f"{net}:Net", "--to", f"{net}:small")
    outcome = run("grow", f"{net}:Net", "--to", f"{net}:small", "--explain", "embed")
    assert outcome.code == plain.code == 2 and outcome.err == plain.err
    assert outcome.out.startswith("embed: 8 (residual width)\n  stays: it can grow")


@pytest.mark.parametrize("command", [["grow", "--to", "width*2"], ["grow", "--to", "embed=12"], ["inspect"]])
def test_an_unknown_axis_is_wrong_use_with_the_nearest_name(run: Command, net: Path, command: list[str]) -> None:
    outcome = run(command[0], f"{net}:Net", *command[1:], "--explain", "embd")
    assert (outcome.code, outcome.out) == (2, "")
    expected = "progc: error: no axis is called `embd`; did you mean embed?; progc inspect --axes lists them"
    assert outcome.err.splitlines()[-1].startswith(expected)


def test_inspect_adds_reasons_to_json_and_refuses_a_folder(run: Command, net: Path, tmp_path: Path) -> None:
    data = json.loads(run("inspect", f"{net}:Net", "--explain", "embed", "--json").out)
    assert [item["axis"] for item in data["explain"]] == ["embed"] and "axes" not in data
    outcome = run("inspect", tmp_path, "--explain", "embed")
    assert outcome.code == 2 and "is an output folder and holds no graph" in outcome.err
