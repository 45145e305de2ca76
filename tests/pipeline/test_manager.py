"""The pass manager: order, verification, purity, history."""

from __future__ import annotations

import copy

import pytest
import torch

import progc
from progc.errors import InputError, PipelineSyntaxError, TargetError, VerifyError
from progc.ir.check import compare
from progc.ir.graphs import fingerprint
from progc.ir.printer import print_graph
from progc.ir.program import MODES, Program
from progc.pipeline.base import PassResult
from progc.pipeline.manager import apply, describe, run
from tests import nets, zoo
from tests.pipeline.test_passes import Snapshot
from tests.toy_passes import AddBias, broken, copied


@pytest.fixture
def program() -> Program:
    return progc.capture(nets.ConvNet(), (torch.randn(2, 3, 8, 8),))


def test_passes_run_in_order_and_leave_history(program: Program) -> None:
    grown, results = run(program, [AddBias(), AddBias("second"), AddBias()])
    assert [result.changed for result in results] == [True, True, False]
    assert [record.text for record in grown.history] == ["add-bias", "add-bias{label=second}", "add-bias"]
    assert results[0].program.history == grown.history[:1]
    assert program.history == ()
    prints = [fingerprint(item) for item in (program, results[0].program, results[1].program)]
    assert [(record.before, record.after) for record in grown.history] == [
        (prints[0], prints[1]),
        (prints[1], prints[2]),
        (prints[2], prints[2]),
    ]


def test_the_result_runs(program: Program) -> None:
    grown = apply(program, [AddBias()])
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(grown.module().eval()(x), program.module().eval()(x))
    assert "bias" in grown.module().state_dict()


def test_history_says_what_changed_and_what_did_not(program: Program) -> None:
    first, second = (describe(record) for record in apply(program, [AddBias(), AddBias()]).history)
    assert first == (
        "add-bias: operations 26 -> 28 (+2), tensors 19 -> 20 (+1), parameters 1,373 -> 1,378 (+5), biases 1"
    )
    assert second == "add-bias: unchanged"


def test_an_empty_pipeline_is_the_program_itself(program: Program) -> None:
    assert apply(program, "") is program
    assert apply(program, []) is program


def test_text_that_does_not_parse(program: Program) -> None:
    with pytest.raises(PipelineSyntaxError, match="there is no pass `grow-depht`; did you mean grow-depth"):
        apply(program, "grow-depht{to=4}")


def test_passes_are_pure(program: Program) -> None:
    """Graphs, metadata (deeply), parameter identity and values of the input stay."""
    texts = [print_graph(program, mode, full=True) for mode in MODES]
    metas = [copy.deepcopy(node.meta) for mode in MODES for node in program.graphs[mode].nodes]
    tensors = dict(program.tensors)
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    apply(program, [AddBias(), AddBias("second")])
    assert texts == [print_graph(program, mode, full=True) for mode in MODES]
    assert metas == [node.meta for mode in MODES for node in program.graphs[mode].nodes]
    assert all(program.tensors[name] is tensor for name, tensor in tensors.items())
    assert all(torch.equal(tensor, values[name]) for name, tensor in program.tensors.items())


def write_weight(program: Program) -> Program:
    with torch.no_grad():
        program.tensors["head.weight"].mul_(2)
    return program


def write_data(program: Program) -> Program:
    program.tensors["head.weight"].data.mul_(2)
    return other_graph(program)


def write_statistics(program: Program) -> Program:
    program.tensors["stem_norm.running_mean"].numpy()[2] += 1
    return other_graph(program)


def freeze_in_place(program: Program) -> Program:
    program.tensors["head.weight"].requires_grad_(False)
    return other_graph(program)


def frozen(program: Program) -> Program:
    weight = torch.nn.Parameter(program.tensors["head.weight"].detach(), requires_grad=False)
    return program.replace(tensors={**program.tensors, "head.weight": weight})


def edit_graph(program: Program) -> Program:
    next(node for node in program.graphs["eval"].nodes if node.name == "hardswish").target = torch.ops.aten.relu.default
    return program


def other_graph(program: Program) -> Program:
    spoilt = copied(program)
    edit_graph(spoilt)
    return spoilt


def other_weight(program: Program) -> Program:
    weight = torch.nn.Parameter(program.tensors["head.weight"].detach().clone())
    return program.replace(tensors={**program.tensors, "head.weight": weight})


@pytest.mark.parametrize(
    ("edit", "changed", "message"),
    [
        (
            write_weight,
            True,
            "after broken: the pass wrote to tensor `head.weight` of its input",
        ),
        (edit_graph, True, "after broken: the pass changed its input program"),
        (
            write_data,
            True,
            "after broken: the pass wrote to tensor `head.weight` of its input",
        ),
        (
            write_statistics,
            True,
            "wrote to tensor `stem_norm.running_mean` of its input",
        ),
        (freeze_in_place, True, "after broken: the pass changed its input program"),
        (frozen, False, "after broken: the pass reports changed=False but returned another program"),
        (
            lambda program: program,
            True,
            "after broken: the pass reports changed=True but returned its input",
        ),
        (
            other_graph,
            False,
            "after broken: the pass reports changed=False but returned another program",
        ),
        (
            other_weight,
            False,
            "after broken: the pass reports changed=False but returned another program",
        ),
    ],
)
def test_impure_and_untruthful_passes(program: Program, edit: object, changed: bool, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        apply(program, [broken(edit, changed)])  # type: ignore[arg-type]


def drop_weight(program: Program) -> Program:
    return program.replace(tensors={name: t for name, t in program.tensors.items() if name != "head.weight"})


def test_the_input_is_verified_before_the_first_pass(program: Program) -> None:
    with pytest.raises(VerifyError, match="^`head.weight` has a spec and no tensor"):
        apply(drop_weight(program), [AddBias()])


def test_the_failing_pass_is_named_and_verification_can_be_turned_off(program: Program) -> None:
    with pytest.raises(VerifyError, match="^pass 2 of 2, broken: after broken: `head.weight` has a spec and no tensor"):
        apply(program, [AddBias(), broken(drop_weight)])
    assert "head.weight" not in apply(program, [broken(drop_weight)], verify=False).tensors


def test_the_trainable_set_is_part_of_the_history(program: Program) -> None:
    after, (result,) = run(program, [broken(frozen)])
    (record,) = after.history
    assert record.before == fingerprint(program) != record.after == fingerprint(after)
    assert not after.tensors["head.weight"].requires_grad and program.tensors["head.weight"].requires_grad
    assert [name for name, parameter in after.module().named_parameters() if not parameter.requires_grad] == [
        "head.weight"
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_parameters_that_are_views_are_grown_and_watched(whole: bool) -> None:
    """Views of one storage share a counter of writes: new tensors beside them are no write to them."""
    net = nets.ConvNet()
    store = torch.randn(net.head.weight.numel() + 3) if whole else torch.randn(8, 32)
    view = store[3:].view(5, 16) if whole else store[1:6, ::2]
    net.head.weight = torch.nn.Parameter(view)
    program = progc.capture(net, (torch.randn(2, 3, 8, 8),))
    after = apply(program, [AddBias()])
    assert compare(program, after, seed=0).max_abs == 0
    wider = apply(program, "grow-width{width=*2}")
    assert compare(program, wider, seed=0).max_rel < 1e-9

    def write_elsewhere(program: Program) -> Program:
        store[..., -1] += 1  # an element of the view where it has the whole storage, of its neighbour where not
        return other_graph(program)

    with pytest.raises(VerifyError, match="wrote to tensor `head.weight` of its input"):
        apply(program, [broken(write_elsewhere)])


class Raises(AddBias):
    name = "raises"

    def run(self, program: Program) -> PassResult:
        raise ZeroDivisionError("no\nluck")


class Forgets(AddBias):
    name = "forgets"

    def run(self, program: Program) -> PassResult:
        return None  # type: ignore[return-value]


def test_a_pass_from_outside_that_fails_is_named(program: Program) -> None:
    place = "fix tests.pipeline.test_manager:Raises (--debug shows the traceback)"
    with pytest.raises(InputError) as raised:
        apply(program, [Raises()])
    assert str(raised.value) == f"pass raises failed with ZeroDivisionError: no luck; {place}"
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(
        InputError, match="^pass 2 of 2, forgets: pass forgets: expected a PassResult, got NoneType; fix"
    ):
        apply(program, [AddBias(), Forgets()])


def test_a_failure_of_ours_stays_what_it_is(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: object, program: Program) -> PassResult:
        raise ZeroDivisionError

    monkeypatch.setattr("progc.passes.grow_depth.GrowDepth.run", run)
    with pytest.raises(ZeroDivisionError):
        apply(program, "grow-depth")


@pytest.mark.parametrize("before", ["grow-width{width=12}", "grow-width{width=*2},grow-width{mlp=40}"])
def test_the_step_that_refuses_is_named(before: str) -> None:
    _, program = zoo.captured("own:flat")
    snapshot, count = Snapshot(program), before.count("width{")
    with pytest.raises(TargetError) as raised:
        apply(program, f"{before},grow-width{{axes=no.such:3}},grow-depth{{to=9}}")
    found = str(raised.value)
    assert found.startswith(f"pass {count + 1} of {count + 2}, grow-width{{axes=no.such:3}}: no axis is called")
    snapshot.assert_same()
