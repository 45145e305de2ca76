"""What holds for every pass, whatever it does: driven by tests/settings.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch.utils import _pytree as pytree

from progc.ir.check import compare
from progc.ir.graphs import fingerprint
from progc.ir.printer import print_graph
from progc.ir.program import MODES, Program
from progc.ir.verify import verify
from progc.pipeline.base import Pass, to_text
from progc.pipeline.manager import run
from progc.pipeline.registry import PASSES, load_pass
from progc.pipeline.text import parse
from tests import zoo
from tests.settings import SETTINGS


def _cases(kind: str) -> Iterator[tuple[str, str]]:
    for settings in SETTINGS.values():
        for setting in settings:
            for text in getattr(setting, kind):
                yield setting.model, text


ACTIVE, IDLE, LOSSLESS = (tuple(_cases(kind)) for kind in ("active", "idle", "lossless"))


def test_every_pass_has_settings() -> None:
    assert SETTINGS.keys() == PASSES.keys()
    for name, settings in SETTINGS.items():
        assert any(setting.active for setting in settings) and any(setting.idle for setting in settings), name
        for setting in settings:
            assert set(setting.lossless) <= set(setting.active)
            for text in (*setting.active, *setting.idle):
                assert [item.name for item in parse(text)] == [name]


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_explains_itself(name: str) -> None:
    kind = load_pass(name)
    assert kind.name == name and issubclass(kind, Pass)
    text = kind.doc()
    assert text.startswith(f"{name}\n\n") and len(kind.__doc__ or "") > 200
    assert all(f"  {option.name}: " in text and option.help for option in kind.options())


@pytest.mark.parametrize(("model", "text"), ACTIVE + IDLE)
def test_text_round_trips(model: str, text: str) -> None:
    passes = parse(text)
    assert parse(to_text(passes)) == passes
    assert to_text(parse(to_text(passes))) == to_text(passes)


class Snapshot:
    """All of a program that a pass could touch: text, metadata (deeply), identity and values of tensors."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.texts = [print_graph(program, mode, full=True) for mode in MODES]
        self.metas = [copy.deepcopy(node.meta) for mode in MODES for node in program.graphs[mode].nodes]
        self.tensors = dict(program.tensors)
        self.values = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
        self.versions = {name: tensor._version for name, tensor in program.tensors.items()}
        self.print = fingerprint(program)

    def assert_same(self) -> None:
        program = self.program
        assert self.texts == [print_graph(program, mode, full=True) for mode in MODES]
        assert self.metas == [node.meta for mode in MODES for node in program.graphs[mode].nodes]
        assert list(self.tensors) == list(program.tensors)
        assert all(program.tensors[name] is tensor for name, tensor in self.tensors.items())
        assert all(torch.equal(program.tensors[name], value) for name, value in self.values.items())
        assert self.versions == {name: tensor._version for name, tensor in program.tensors.items()}
        assert self.print == fingerprint(program)


@pytest.mark.parametrize(("model", "text"), ACTIVE)
def test_an_active_pass(model: str, text: str) -> None:
    """Pure, verified, recorded, and its result runs in both modes and loads into its own module."""
    _, program = zoo.captured(model)
    before = Snapshot(program)
    after, (result,) = run(program, text)
    before.assert_same()
    assert result.changed and after is result.program and after is not program
    assert all(after.graphs[mode] is not program.graphs[mode] for mode in MODES)
    assert fingerprint(after) != fingerprint(program)
    verify(after, before=program)
    (record,) = after.history
    assert record.text == to_text(parse(text)) and record.changed
    assert (record.before, record.after) == (fingerprint(program), fingerprint(after))
    assert result.counts.items() <= record.counts.items()
    again, _ = run(program, text)
    assert fingerprint(again) == fingerprint(after)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in after.tensors.items())
    assert result.lossless is ((model, text) in LOSSLESS)
    _assert_runs(program, after)


def _assert_runs(program: Program, after: Program) -> None:
    module = after.module()
    module.load_state_dict(after.state_dict(), strict=True)
    args, kwargs = copy.deepcopy(program.example)
    old = _shapes(program.module().eval()(*args, **kwargs))
    args, kwargs = copy.deepcopy(after.example)
    assert _shapes(module.eval()(*args, **kwargs)) == old
    leaves = [leaf for leaf in pytree.tree_leaves(module.train()(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    sum(leaf.square().mean() for leaf in leaves if leaf.requires_grad).backward()  # type: ignore[union-attr]
    used = [parameter for parameter in module.parameters() if parameter.grad is not None]
    assert used and all(bool(torch.isfinite(parameter.grad).all()) for parameter in used if parameter.grad is not None)


def _shapes(outputs: object) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("model", "text"), IDLE)
def test_an_idle_pass_returns_its_very_input(model: str, text: str) -> None:
    _, program = zoo.captured(model)
    before = Snapshot(program)
    result = parse(text)[0].run(program)
    before.assert_same()
    assert result.program is program and not result.changed and result.lossless is not False
    after, _ = run(program, text)
    assert [record.changed for record in after.history] == [False]
    assert fingerprint(after) == fingerprint(program)
    assert all(after.tensors[name] is tensor for name, tensor in program.tensors.items())


@pytest.mark.parametrize(("model", "text"), LOSSLESS)
def test_what_a_pass_calls_lossless_is(model: str, text: str) -> None:
    _, program = zoo.captured(model)
    assert compare(program, run(program, text)[0], seed=1).max_rel < 1e-9
