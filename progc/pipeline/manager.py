"""Runs passes one after another, verifies every step and records the history of the program."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from progc.errors import InputError, ProgcError, VerifyError, one_line
from progc.ir.deferred import identity
from progc.ir.graphs import fingerprint
from progc.ir.program import MODES, PassRecord, Program
from progc.ir.verify import verify as verify_program
from progc.lift.averages import EmaLike, attached, handed_over, moved
from progc.pipeline.base import Pass, PassResult
from progc.pipeline.text import parse

if TYPE_CHECKING:
    from progc.lift.lift import Lift
    from progc.lift.optimizers import Optimizers

_OURS = "progc."
"""Unexpected exceptions of passes in these modules are bugs in progc and are not turned into user errors."""


def apply(
    program: Program,
    pipeline: str | Sequence[Pass],
    *,
    verify: bool = True,
    optimizer: Optimizers = None,
    ema: EmaLike | Sequence[EmaLike] | None = None,
    correct_rates: bool = False,
) -> Program:
    """Applies all passes of `pipeline` to a program and returns the resulting program.

    The input program is not changed.

    Args:
        program: the program to transform.
        pipeline: text such as `"grow-depth{to=12},grow-width{width=*2}"`, or a sequence of passes.
        verify: verify the program before the first pass and after every pass. Turn it off only to inspect a broken
            pass.
        optimizer: the optimizer or optimizers of the program; they continue with the result (progc/lift/optimizers/).
            Parameters that train only now join a group, and a warning is logged that says which.
        ema: averaged copies of the weights, which become `program.averages` of the result; a `progc.EMA` continues
            with them.
        correct_rates: also correct the learning rates and weight decay of the optimizer (docs/growth.md, section 3.3),
            in separate parameter groups.

    Raises:
        PipelineSyntaxError: the text does not parse.
        VerifyError: the input program or the result of a pass is broken; names the pass.
        InputError: the optimizer or the averages do not belong to this program. Neither is changed.
        ProgcError: a pass refuses. In a pipeline of several passes the message names the pass; nothing is changed.
    """
    averaged = program if ema is None else attached(program, ema)
    result, results = run(averaged, pipeline, verify=verify)
    lifts = [item.lift for item in results if item.lift is not None]
    for note in hand_over(program, result, lifts, optimizer=optimizer, ema=ema, correct_rates=correct_rates):
        logging.getLogger(__name__).warning("progc: %s", note)
    return result


def hand_over(
    before: Program,
    after: Program,
    lifts: Sequence[Lift],
    *,
    optimizer: Optimizers,
    ema: EmaLike | Sequence[EmaLike] | None,
    correct_rates: bool,
) -> tuple[str, ...]:
    """Moves optimizers and averages from `before` to `after`: both, or neither if there is an error.

    Returns:
        A sentence for every parameter group that parameters join because they train only now.

    Raises:
        InputError: see `apply`.
    """
    notes: tuple[str, ...] = ()
    if optimizer is not None:
        from progc.lift.optimizers import repoint

        notes = repoint(optimizer, before, after, lifts, correct_rates=correct_rates)
    elif correct_rates:
        raise InputError("correct_rates=True requires an optimizer: pass optimizer=..., or leave out correct_rates")
    if ema is not None:
        handed_over(ema, after)
    return notes


def run(program: Program, pipeline: str | Sequence[Pass], *, verify: bool = True) -> tuple[Program, list[PassResult]]:
    """Like `apply`, and also returns the result of each pass, whose program holds the history up to that pass."""
    passes = parse(pipeline) if isinstance(pipeline, str) else list(pipeline)
    if verify:
        verify_program(program)
    results: list[PassResult] = []
    for number, item in enumerate(passes, 1):
        try:
            result = _run_one(program, item, verify)
        except ProgcError as error:
            if len(passes) > 1:
                text = str(error).removeprefix(f"{item.name}: ")
                error.args = (f"pass {number} of {len(passes)}, {item}: {text}", *error.args[1:])
            raise
        results.append(result)
        program = result.program
    return program, results


def _run_one(program: Program, item: Pass, verify: bool) -> PassResult:
    before = fingerprint(program)
    state = _state(program) if verify else {}
    result = _result(program, item)
    after = fingerprint(result.program)
    if verify:
        _verify_pure(program, item, before, state)
        verify_program(result.program, item.name, before=program)
        _verify_claim(program, result, item, before == after)
        _verify_trainable(program, result, item)
    record = PassRecord(str(item), result.changed, before, after, _counts(program, result))
    averages = moved(program.averages, result.lift, result.program, item.name)
    grown = result.program.replace(history=(*program.history, record), averages=averages)
    return dataclasses.replace(result, program=grown)


def _result(program: Program, item: Pass) -> PassResult:
    """Runs the pass. An exception of a pass outside progc becomes an error in one line that names the pass."""
    ours = type(item).__module__.startswith(_OURS)
    try:
        result = item.run(program)
    except ProgcError:
        raise
    except Exception as error:
        if ours:
            raise
        reason = one_line(error, empty="no message")
        raise InputError(f"pass {item.name} failed with {type(error).__name__}: {reason}; {_where(item)}") from error
    if not isinstance(result, PassResult):
        raise InputError(f"pass {item.name}: expected a PassResult, got {type(result).__name__}; {_where(item)}")
    return result


def _where(item: Pass) -> str:
    return f"fix {type(item).__module__}:{type(item).__qualname__} (--debug shows the traceback)"


def _state(program: Program) -> dict[int, tuple[int, int | None]]:
    """Returns for each tensor object its counter of in-place writes and a digest of its bytes.

    The counter alone is not enough: writing through `.data` or through a numpy array does not change it, and a pass
    would then be compared with its own result.
    """
    return {id(tensor): (_version(tensor), _digest(tensor)) for tensor in program.tensors.values()}


def _verify_pure(program: Program, item: Pass, before: str, state: dict[int, tuple[int, int | None]]) -> None:
    if fingerprint(program) != before:
        raise VerifyError(f"after {item.name}: the pass changed its input program; change a copy")
    now = _state(program)
    for name, tensor in program.tensors.items():
        if now[id(tensor)] != state[id(tensor)]:
            raise VerifyError(f"after {item.name}: the pass wrote to tensor `{name}` of its input; change a copy")


def _version(tensor: torch.Tensor) -> int:
    """Returns the number of in-place writes; tensors made in inference mode have no counter."""
    return 0 if tensor.is_inference() else tensor._version


def _digest(tensor: torch.Tensor) -> int | None:
    """Returns the CRC of the values; None for a deferred tensor, which holds no values."""
    if tensor.is_meta:
        return None
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy()
    return zlib.crc32(data) if flat.numel() else 0


def _verify_claim(program: Program, result: PassResult, item: Pass, same: bool) -> None:
    """Checks that a result reported as unchanged is unchanged, and that one reported as changed has changed."""
    tensors = result.program.tensors
    same = same and all(tensors[name] is tensor for name, tensor in program.tensors.items())
    if not result.changed and not same:
        raise VerifyError(f"after {item.name}: the pass reports changed=False but returned another program")
    # A pass may change something that no fingerprint covers, such as the example inputs.
    others = {field.name for field in dataclasses.fields(program)} - {"graphs", "tensors", "specs", "tied", "signature"}
    if result.changed and same and all(getattr(result.program, n) is getattr(program, n) for n in others):
        raise VerifyError(f"after {item.name}: the pass reports changed=True but returned its input program")


def _verify_trainable(program: Program, result: PassResult, item: Pass) -> None:
    """Checks that no pass both replaces the values of a parameter and flips `requires_grad`, which would be a slip.

    Blocks may be renumbered, so the lift tells which tensor of the input a parameter comes from.
    """
    words = {True: "trainable", False: "frozen"}
    sources = {entry.name: entry.source for entry in result.lift.tensors} if result.lift is not None else {}
    for name, tensor in result.program.parameters():
        old = program.tensors.get(sources.get(name, name))
        if isinstance(old, nn.Parameter) and old.requires_grad != tensor.requires_grad and not _same(old, tensor):
            raise VerifyError(
                f"after {item.name}: parameter `{name}` has new values: expected it to stay "
                f"{words[old.requires_grad]}, but it is {words[tensor.requires_grad]}"
            )


def _same(old: torch.Tensor, new: torch.Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    return old.is_meta or new.is_meta or identity(old) == identity(new) or torch.equal(old, new)


def _counts(program: Program, result: PassResult) -> dict[str, int]:
    counts: dict[str, int] = {}
    for label, old, new in zip(_LABELS, _sizes(program), _sizes(result.program), strict=True):
        counts[f"{label} before"], counts[f"{label} after"] = old, new
    return {**counts, **result.counts}


_LABELS = ("operations", "tensors", "parameters")


def _sizes(program: Program) -> tuple[int, int, int]:
    operations = sum(node.op == "call_function" for mode in MODES for node in program.graphs[mode].nodes)
    return operations, len(program.tensors), program.num_parameters()


def describe(record: PassRecord) -> str:
    """Describes one pass in a line: `grow-depth{to=4}: operations 48 -> 96 (+48), ...`, or `...: unchanged`."""
    if not record.changed:
        return f"{record.text}: unchanged"
    counts = dict(record.counts)
    parts = [_difference(label, counts.pop(f"{label} before"), counts.pop(f"{label} after")) for label in _LABELS]
    parts += [f"{label} {number:,}" for label, number in counts.items()]
    return f"{record.text}: {', '.join(parts)}"


def _difference(label: str, old: int, new: int) -> str:
    return f"{label} {old:,} -> {new:,} ({new - old:+,})" if old != new else f"{label} {old:,}"
