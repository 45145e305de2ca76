"""The work of bench/pairs.py: models by key, which pairs of a family are candidates, and one pair from end to end.

A process runs the pairs of one family, so that every model is captured once. Small models have real weights with
noise; large ones are skeletons, and their growth is decided by analysis and by comparing the grown graph with the
target's own, which needs no weights.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import gc
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

import progc
from bench.pair_lists import UNETS
from progc.errors import CaptureError, NotLosslessError, ProgcError, TargetError
from progc.growth import grow as growing
from progc.growth.grow import Growth, grow_with_report
from progc.ir.check import Difference
from progc.ir.program import Program
from progc.models.opening import open_source
from progc.models.skeleton import build_skeleton
from progc.models.source import derive_example
from tests.grown import gap, outputs
from tests.zoo import perturb

LIMIT = 1e-6
"""Largest relative difference between the source's class and the target's, in float64, that counts as equal."""

_CAPTURED = 3
"""Captured models kept at a time."""


def construct(key: str, **more: Any) -> nn.Module:
    """A fresh model; `more` are further options of its constructor."""
    library, _, name = key.partition(":")
    name, _, options = name.partition("?")
    given = {k: int(v) for k, _, v in (item.partition("=") for item in options.split("&") if item)} | more
    if library == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(sample_size=16, cross_attention_dim=768, **UNETS[name])
    if library == "timm" and given:
        import timm

        return timm.create_model(name, **given)
    if given:
        raise ValueError(f"{library} takes no options here")
    return open_source(f"{library}:{name}").build()


def skeleton(key: str, **more: Any) -> nn.Module:
    """The model without weights."""
    with torch.random.fork_rng():
        return build_skeleton(lambda: construct(key, **more))


@functools.cache
def parameters(key: str) -> int:
    """Number of parameters."""
    return _outline(key)[0]


@functools.cache
def _outline(key: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Number of parameters, and the shapes of the state."""
    model = skeleton(key)
    count = sum(parameter.numel() for parameter in model.parameters())
    return count, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def candidates(keys: list[str]) -> list[tuple[str, str]]:
    """Ordered pairs where the second has every tensor of the first, none smaller, and more parameters; neighbours only.

    A pair is left out if a third model lies between the two; the pair with the largest ratio of sizes is kept as well.
    """
    shapes = {key: _outline(key)[1] for key in keys}
    sizes = {key: parameters(key) for key in keys}
    below = {(a, b) for a in keys for b in keys if a != b and sizes[a] < sizes[b] and _fits(shapes[a], shapes[b])}
    near = [(a, b) for a, b in below if not any((a, c) in below and (c, b) in below for c in keys)]
    far = max(below - set(near), key=lambda pair: sizes[pair[1]] / sizes[pair[0]], default=None)
    order = {key: position for position, key in enumerate(keys)}
    return sorted([*near, *([far] if far else [])], key=lambda pair: (order[pair[0]], order[pair[1]]))


def _fits(a: dict[str, tuple[int, ...]], b: dict[str, tuple[int, ...]]) -> bool:
    return a.keys() <= b.keys() and all(
        len(shape) == len(b[name]) and all(x <= y for x, y in zip(shape, b[name], strict=True))
        for name, shape in a.items()
    )


@functools.lru_cache(maxsize=_CAPTURED)
def _model(key: str, real: bool, options: tuple[tuple[str, Any], ...] = ()) -> nn.Module:
    more = dict(options)
    if not real:
        return skeleton(key, **more).eval()
    torch.manual_seed(0)
    return perturb(construct(key, **more)).eval()


@functools.lru_cache(maxsize=_CAPTURED)
def _program(key: str, real: bool, options: tuple[tuple[str, Any], ...], size: Any) -> Program:
    """The captured model; `size` is (key, options) of the model whose example inputs it is called with."""
    model = _model(key, real, options)
    example = derive_example(_model(*size)) if size else derive_example(model)
    assert example is not None, key
    return progc.capture(model, *example)


def run_pair(source: str, target: str, measured: int) -> dict[str, Any]:
    """One row of the table.

    Args:
        measured: largest number of parameters of a grown model that is run.
    """
    start = time.perf_counter()
    sizes = [parameters(key) for key in (source, target)]
    real = sizes[1] <= measured
    row: dict[str, Any] = {"source": source, "target": target, "params": sizes, "alike": "", "notes": []}
    row |= _attempt(source, target, real, {})
    if row["outcome"] == "refused":
        for options in _alike(source, target):
            again = _attempt(source, target, real, options)
            if again["outcome"] != "refused":
                text = ", ".join(f"{name}={value}" for name, value in options.items())
                row |= again | {"alike": text, "refused_as_published": row["reason"]}
                break
    row["seconds"] = round(time.perf_counter() - start, 1)
    gc.collect()
    return row


def _alike(source: str, target: str) -> Iterator[dict[str, Any]]:
    """Constructor options that give the target the source's input size, and its patch size as well."""
    if not target.startswith("timm:"):
        return
    small, large = skeleton(source), skeleton(target)
    mine, theirs = derive_example(small), derive_example(large)
    assert mine is not None and theirs is not None
    side, other = mine[0][0].shape[-1], theirs[0][0].shape[-1]
    patches = [getattr(getattr(model, "patch_embed", None), "patch_size", None) for model in (small, large)]
    if side != other:
        yield {"img_size": side}
    if patches[0] != patches[1]:
        yield {"img_size": side, "patch_size": patches[0][0] if isinstance(patches[0], tuple) else patches[0]}


def _attempt(source: str, target: str, real: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Grows with the target built by `options`; outcome, reason, notes, and what was measured."""
    try:
        program = _program(source, real, (), None)
        with contextlib.ExitStack() as stack:
            try:
                aim = _aim(source, target, options)
            except (TypeError, ValueError, RuntimeError, AssertionError) as error:
                return {"outcome": "refused", "reason": f"the library does not build it with {options}: {error}"[:300]}
            if not real:
                stack.enter_context(_unmeasured())
            growth = grow_with_report(program, aim, **({} if real else {"place": _stay}))
    except NotLosslessError as error:
        row = {"outcome": "refused", "reason": str(error).partition("; accept the difference")[0]}
        if real:
            row["lossy_rel_diff"] = _lossy(program, aim)
        return row
    except CaptureError as error:
        return {"outcome": "refused", "reason": f"not captured: {error}"}
    except TargetError as error:
        return {"outcome": "refused", "reason": str(error)}
    except ProgcError as error:
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    row = {"outcome": "lossless", "reason": "", "compared": growth.report.get("compared", "all outputs")}
    row["notes"] = [note for note in growth.plan.notes if "classes appended" in note]
    if _example_size(program) != _own_size(target):
        row["notes"].append(f"compared at the source's input size {_example_size(program)}")
    if real:
        row |= _loaded(source, target, options, program, growth)
    return row


def _aim(source: str, target: str, options: dict[str, Any]) -> Program:
    """The target, called with the source's inputs where it can be."""
    given = tuple(options.items())
    real = False
    try:
        return _program(target, real, given, (source, False))
    except CaptureError:
        return _program(target, real, given, None)


def _example_size(program: Program) -> str:
    return "x".join(map(str, program.signature.shapes[0][1:])) if program.signature.shapes[0] else ""


def _own_size(target: str) -> str:
    example = derive_example(skeleton(target))
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    return "x".join(map(str, tensors[0].shape[1:]))


def _loaded(source: str, target: str, options: dict[str, Any], program: Program, growth: Growth) -> dict[str, Any]:
    """Strictly loads the grown weights into the target's class and compares the two classes in float64."""
    reference = construct(target, **options).eval()
    grown = collections.OrderedDict(growth.program.state_dict())
    grown._metadata = reference.state_dict()._metadata  # type: ignore[attr-defined]  # some classes ask for a version
    reference.load_state_dict(grown, strict=True)
    args, kwargs = copy.deepcopy(program.example)
    args, kwargs = torch.utils._pytree.tree_map(_first, (args, kwargs))
    before = outputs(_model(source, True), args, kwargs)
    after = outputs(reference, args, kwargs)
    after = [b[tuple(slice(size) for size in a.shape)] for a, b in zip(before, after, strict=True)]
    found = gap(before, after)
    row: dict[str, Any] = {"measured": found}
    if not found < LIMIT:
        row |= {"outcome": "failed", "reason": f"the target's class answers differently by {found:.2e} (relative)"}
    return row


def _first(leaf: Any) -> Any:
    """The first sample of a batch."""
    return leaf[:1] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf


def _lossy(program: Program, aim: Program) -> float | None:
    try:
        return grow_with_report(program, aim, lossy=True).report["max_rel_diff"]
    except ProgcError:
        return None


def _stay(grown: Program) -> Program:
    """No weight is made: parameters keep their shapes, and their values are never computed."""
    return grown


@contextlib.contextmanager
def _unmeasured() -> Iterator[None]:
    """Growth by analysis alone: nothing is run."""
    nothing = Difference(0.0, 0.0, True)
    with mock.patch.object(growing, "measure", lambda *a, **k: nothing):
        yield
