"""How users register rules, and what becomes of a wrong one: it pins, it is refused, or it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc import rules
from progc.analysis.axes import registry
from progc.analysis.axes.records import Value
from progc.errors import CaptureError, CheckError, NotLosslessError
from progc.growth.grow import grow_with_report
from progc.ir.check import compare
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.models.sizes import parse_sizes
from tests.analysis.axes.growth import program_of
from tests.command import Command
from tests.kernels import define, set_rules_apart


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rules_apart(monkeypatch)


# -- registering -------------------------------------------------------------------------------------------


def test_an_op_is_named_in_any_of_its_ways() -> None:
    op = define("progctest::named", lambda_like)
    packet = torch.ops.progctest.named
    for given in (op, packet, packet.default, "progctest.named", "progctest::named"):
        registry._RULES.pop("progctest.named", None)
        progc.rule(given)(simple)
        assert registry._RULES["progctest.named"] is simple


def lambda_like(x: Tensor) -> Tensor:
    return x * 2


def simple(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return rules.elementwise(ctx, args["x"])


def test_names_that_are_no_op_are_refused() -> None:
    with pytest.raises(ValueError, match="no op is called progctest.nothing"):
        progc.rule("progctest.nothing")
    with pytest.raises(TypeError, match="expected an op"):
        progc.rule(simple)
    with pytest.raises(TypeError, match="expects at least one op"):
        progc.rule()


def test_our_own_rules_are_not_replaced_and_a_users_are_by_the_latest() -> None:
    before = registry._RULES["linear"]
    for name in ("linear", "aten.linear", "aten::linear"):
        with pytest.raises(ValueError, match="op linear already has a rule"):
            progc.rule(name)(simple)
    assert registry._RULES["linear"] is before
    define("progctest::named", lambda_like)
    progc.rule("progctest.named")(simple)
    progc.rule("progctest.named")(wrong_sizes)
    assert registry._RULES["progctest.named"] is wrong_sizes


USER = """
import torch, progc
from torch import nn
from progc import rules

@torch.library.custom_op("progctest::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    return torch.empty_like(x)

@progc.rule(twice)
def twice_rule(ctx, node, args):
    return rules.elementwise(ctx, args["x"])

@progc.rule("frac")
def frac(ctx, node, args):
    return rules.elementwise(ctx, args["self"])

class Net(nn.Module):
    def __init__(self, hidden=6):
        super().__init__()
        self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.down(torch.frac(twice(self.up(x))))

def big():
    return Net(9)

def example_inputs():
    return (torch.randn(2, 4),)
"""


def test_a_users_file_brings_its_rules_however_often_it_is_imported(run: Command, tmp_path: Path) -> None:
    first = tmp_path / "first.py"
    for text in (USER, "# changed\n" + USER):
        first.write_text(text)
        outcome = run("grow", f"{first}:Net", "--to", f"{first}:big", "--json")
        assert outcome.code == 0 and '"lossless": true' in outcome.out, outcome.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rule(twice)", 'rule("progctest.twise")', "no op is called progctest.twise; define the op before its rule"),
        ("@twice.register_fake", "", "register one with torch.library.register_fake"),
        ('rule("frac")', 'rule("linear")', "op linear already has a rule"),
    ],
)
def test_faults_of_a_users_file_are_one_line(run: Command, tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "net.py"
    file.write_text(USER.replace(old, new))
    outcome = run("inspect", f"{file}:Net", "--axes")
    assert outcome.code == 2 and outcome.out == ""
    assert message in outcome.err and len(outcome.err.splitlines()) == 1


# -- wrong rules -------------------------------------------------------------------------------------------


class Through(nn.Module):
    """Linear, one op by name, linear."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op, self.into, self.out = op, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(getattr(torch.ops.progctest, self.op)(self.into(x)))


def through(op: str) -> Program:
    return program_of(Through(op), torch.randn(2, 4))


def wrong_sizes(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return Value(args["x"].dims[:1])


def fresh_dims(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    from progc.analysis.axes import dims as D

    return rules.replaced(args["x"], {-1: D.new(6)})


def no_value(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Any:
    return "[..., width]"


def wrong_name(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return rules.elementwise(ctx, args["input"])


def breaks(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    raise RuntimeError("of\nmy own")


def garbage(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return Value((2, 6))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (wrong_sizes, "the rule of progctest.twofold returns sizes that differ from the result of the op"),
        (no_value, "the rule of progctest.twofold returns sizes that differ from the result of the op"),
        (fresh_dims, "the rule of progctest.twofold does not say what happens to it"),
        (wrong_name, "the rule of progctest.twofold raised KeyError: 'input'"),
        (breaks, "the rule of progctest.twofold raised RuntimeError: of my own"),
        (garbage, "the rule of progctest.twofold raised "),
    ],
)
def test_a_wrong_rule_pins_and_says_why(function: Any, reason: str) -> None:
    define("progctest::twofold", lambda_like)
    progc.rule("progctest.twofold")(function)
    table = through("twofold").axes
    assert not table.growable
    assert reason in table["into"].reason


def test_units_that_come_from_nowhere_are_pinned() -> None:
    """Their size would not follow when what reads them grows."""
    define("progctest::twofold", lambda_like)
    progc.rule("progctest.twofold")(fresh_dims)
    table = through("twofold").axes
    reasons = [axis.reason for axis in table.axes]
    assert "the rule of progctest.twofold returns it but does not say where it comes from" in reasons


def test_a_rule_that_claims_too_much_is_measured() -> None:
    define("progctest::share", lambda_share, lambda_like)
    progc.rule("progctest.share")(simple)
    with pytest.raises(CheckError, match="analysis calls this growth lossless, but the output changes"):
        grow_with_report(through("share"), parse_sizes("into=12"))


def lambda_share(x: Tensor) -> Tensor:
    return x / x.exp().sum(-1, keepdim=True)


def test_a_norm_without_its_condition_is_measured() -> None:
    define("progctest::norm", lambda_norm, lambda_like)
    progc.rule("progctest.norm")(simple)
    with pytest.raises(CheckError, match="analysis calls this growth lossless, but the output changes"):
        grow_with_report(through("norm"), parse_sizes("into=9"))
    progc.rule("progctest.norm")(normalising)
    with pytest.raises(NotLosslessError, match="progctest.norm at norm takes statistics over it"):
        grow_with_report(through("norm"), parse_sizes("into=9"))


def lambda_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def normalising(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return rules.normalised(ctx, args["x"])


def test_a_mean_and_an_optional_argument() -> None:
    define("progctest::mean", lambda_mean, lambda_mean)
    progc.rule("progctest.mean")(averaging)

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.progctest.mean(self.into(x), False)

    program = program_of(Mean(), torch.randn(2, 4))
    assert compare(program, progc.apply(program, "grow-width{axes=into:12}"), seed=0).max_rel < 1e-9
    with pytest.raises(NotLosslessError):
        progc.apply(program, "grow-width{axes=into:9}")


def lambda_mean(x: Tensor, keep: bool) -> Tensor:
    return x.mean(-1, keepdim=keep)


def averaging(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    return rules.averaged(ctx, args["x"], keepdim=args["keep"])


def lambda_groups(x: Tensor, groups: int = 2) -> Tensor:
    return x.unflatten(-1, (groups, -1)).softmax(-1).flatten(-2)


def grouping(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> Value:
    outer, inner = rules.factors(args["x"], -1, [args["groups"], -1])
    rules.size(ctx, args, "groups", outer)
    rules.pinned(ctx, inner, "softmax inside a group")
    return rules.replaced(args["x"], {-1: rules.joined(outer, inner)})


@pytest.mark.parametrize("written", [True, False])
def test_a_size_among_the_arguments_follows_only_if_it_is_written(written: bool) -> None:
    define("progctest::groups", lambda_groups)
    progc.rule("progctest.groups")(grouping)

    class Groups(Through):
        def forward(self, x: Tensor) -> Tensor:
            y = self.into(x)
            return self.out(torch.ops.progctest.groups(y, 3) if written else torch.ops.progctest.groups(y))

    program = program_of(Groups("groups"), torch.randn(2, 4))
    groups, inside = program.axes["into"], program.axes["into.2"]
    assert inside.reason == "softmax inside a group"
    assert groups.growable == written, groups.reason
    if written:
        wider = progc.apply(program, "grow-width{axes=into:5}")
        assert compare(program, wider, seed=0).max_rel < 1e-9
    else:
        assert groups.reason == "progctest.groups uses the default groups"


# -- what else an op has to do -----------------------------------------------------------------------------


def test_an_op_that_cannot_do_float64_is_one_line() -> None:
    def narrow(x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("half precision\nonly")
        return x * 2

    define("progctest::narrow", narrow, lambda_like)
    progc.rule("progctest.narrow")(simple)
    program = progc.capture(Through("narrow"), (torch.randn(2, 4),))
    with pytest.raises(CheckError, match=r"float64 check, eval graph, node `narrow`, .*half precision only") as error:
        grow_with_report(program, parse_sizes("into=12"))
    assert "\n" not in str(error.value)


def test_an_op_that_writes_to_its_argument_pins_whatever_its_rule_says() -> None:
    @torch.library.custom_op("progctest::overwrite", mutates_args=("x",))
    def overwrite(x: Tensor) -> None:
        x.add_(1)

    overwrite.register_fake(lambda x: None)
    progc.rule(overwrite)(simple)

    class Net(Through):
        def forward(self, x: Tensor) -> Tensor:
            y = self.into(x).clone()
            torch.ops.progctest.overwrite(y)
            return self.out(y)

    table = program_of(Net("overwrite"), torch.randn(2, 4)).axes
    assert not table.growable and "no rule for op progctest.overwrite" in table["into"].reason


def test_capture_names_an_op_without_shape_rule() -> None:
    torch.library.custom_op("progctest::shapeless", mutates_args=())(lambda_like)
    with pytest.raises(CaptureError, match="torch.library.register_fake"):
        through("shapeless")


class Residual(nn.Module):
    """Blocks `x + op(down(gelu(up(x))))`."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.Sequential(*(Branch(op) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)))


class Branch(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.op, self.up, self.down = op, nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + getattr(torch.ops.progctest, self.op)(self.down(F.gelu(self.up(x))))


def test_an_op_of_a_known_name_in_another_namespace_is_not_that_op() -> None:
    """Dropout passes every factor on; this op does not, so depth growth is refused with its name."""
    define("progctest::dropout", lambda_shift, lambda_like)
    progc.rule("progctest.dropout")(simple)
    program = program_of(Residual("dropout"), torch.randn(2, 4))
    (node,) = {n for n in program.graphs["eval"].nodes if n.name == "dropout"}
    assert op_name(node) == "progctest.dropout"
    with pytest.raises(NotLosslessError, match=r"progctest\.dropout\.default \(dropout"):
        progc.apply(program, "grow-depth{to=4}")
    assert compare(program, progc.apply(program, "grow-width{axes=embed:12}"), seed=0).max_rel < 1e-9


def lambda_shift(x: Tensor) -> Tensor:
    return x + 1
