"""Explains in one line why a model cannot be captured: the user's file and line, the construct, and what to do.

torch.export raises many types of exceptions with long texts about symbols. `explain` finds the user's source line (the
deepest frame outside torch, numpy and the standard library, also in chained exceptions) and describes the construct
from a table. For constructs that are not in the table, it keeps the first line of torch's message.
"""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import nn

from progc.errors import CaptureError

_PROGC = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STDLIB = sysconfig.get_paths()["stdlib"]
_SITE = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))
_TRACERS = tuple(os.path.join(folder, "") for folder in (os.path.dirname(torch.__file__), _PROGC))
_SOURCE_LIMIT = 100


@dataclasses.dataclass(frozen=True)
class SourcePlace:
    """A line of the user's source: file path, line number, stripped text (empty when unknown)."""

    file: str
    line: int
    source: str

    def __str__(self) -> str:
        return f"{_shortest(self.file)}:{self.line}"


@dataclasses.dataclass(frozen=True)
class _Construct:
    """A construct that torch.export cannot trace.

    `matches(message, source)` recognises it; `what` and `instead` describe it and the alternative.
    """

    matches: Callable[[str, str], bool]
    what: str
    instead: str


def _data_dependent(pattern: str) -> Callable[[str, str], bool]:
    known = re.compile("data-dependent|DataDependent|unbacked", re.IGNORECASE)
    return lambda message, source: bool(known.search(message) and re.search(pattern, source))


def _says(pattern: str) -> Callable[[str, str], bool]:
    return lambda message, source: bool(re.search(pattern, message))


# First match wins. Messages are `ExceptionType: text`.
_CONSTRUCTS: tuple[_Construct, ...] = (
    _Construct(
        _data_dependent(r"^assert\b"),
        "asserts something about the value of a tensor",
        "remove the assertion, or check before calling the model",
    ),
    _Construct(
        _data_dependent(r"^while\b|^for\b|\brange\("),
        "runs a loop whose length depends on the value of a tensor",
        "give the loop a fixed number of steps, or use torch.where on its result",
    ),
    _Construct(
        _data_dependent(r"^(el)?if\b|\bif\b.*\belse\b|\band\b|\bor\b|\bnot\b"),
        "branches on the value of a tensor",
        "use torch.where, or choose the branch by an argument or attribute that is not a tensor",
    ),
    _Construct(
        _data_dependent(r"\.item\(|\.tolist\(|\b(int|float|bool|max|min)\("),
        "reads a number from a tensor (.item())",
        "keep the value in a tensor, or pass it as a Python number",
    ),
    _Construct(
        _data_dependent(""),
        "needs the value of a tensor, or a size that depends on one",
        "use operations whose result sizes do not depend on the data (torch.where, masks)",
    ),
    _Construct(_says(r"\.numpy\(\)|numpy"), "calls numpy", "use the corresponding torch function"),
    _Construct(
        _says(r"^AttributeError: 'FakeTensor'|data pointer|data_ptr"),
        "reads the memory of a tensor directly",
        "use torch operations, or wrap the kernel as a torch.library custom op",
    ),
    _Construct(
        _says(r"DynamicOutputShape"),
        "calls an operation whose output size depends on the data",
        "use a mask of fixed size (torch.where)",
    ),
    _Construct(
        _says(r"UnsupportedOperator|no fake impl|register_fake"),
        "calls an operation without a shape rule",
        "register one with torch.library.register_fake",
    ),
    _Construct(
        _says(r"fake tensor in the exported program constant|were assigned during export"),
        "keeps a tensor that was created inside forward (a cache, or torch.autograd.grad)",
        "compute it from inputs, parameters and registered buffers only",
    ),
    _Construct(
        _says(r"UninitializedParameter|uninitialized"),
        "has lazy parameters that were never materialised",
        "call the model once on the example inputs before capture",
    ),
    _Construct(_says(r"torch\.jit|Script"), "uses TorchScript", "use the plain Python function or module"),
    _Construct(
        _says(r"TypeError: .*forward\(\) (missing|got|takes)"),
        "does not take the example inputs",
        "pass `args` and `kwargs` that match the signature of forward",
    ),
)


def explain(error: BaseException, model: nn.Module) -> CaptureError:
    """Returns an error of torch.export as a one-line `CaptureError`; use `raise explain(e, model) from e`."""
    message = f"{type(error).__name__}: {error}"
    unknown = re.search(r"Found <class '(?:__main__\.)?([^']+)'> in output", message)
    place = place_of(error)
    if unknown:
        kind = unknown[1].rsplit(".", 1)[-1]
        return refusal(
            model,
            definition_of(model),
            f"returns an object of class {kind}",
            "return tensors in tuples, lists, dicts, named tuples or dataclasses",
        )
    unsupported = re.search(r"Unsupported input type <class '([^']+)'>", message)
    if unsupported:
        return refusal(
            model,
            definition_of(model),
            f"gets an input of class {unsupported[1].rsplit('.', 1)[-1]}",
            "pass tensors, numbers, strings, None, or tuples, lists, dicts and dataclasses of them",
        )
    for construct in _CONSTRUCTS:
        if construct.matches(message, place.source if place else ""):
            return refusal(model, place or definition_of(model), construct.what, construct.instead)
    lines = str(error).strip().splitlines()
    first = lines[0].strip().rstrip(".") if lines else "no further message"
    return refusal(
        model,
        place or definition_of(model),
        f"fails: {type(error).__name__}: {first}",
        "check that the model runs on the example inputs",
    )


def refusal(model: nn.Module, place: SourcePlace | None, what: str, instead: str) -> CaptureError:
    """Returns the error for a construct: `cannot capture CLASS: FILE:LINE WHAT (`source`); INSTEAD`."""
    where = f"{place} {what}" if place else f"it {what}"
    source = place.source if place else ""
    if len(source) > _SOURCE_LIMIT:
        source = source[: _SOURCE_LIMIT - 3] + "..."
    quoted = f" (`{source}`)" if source else ""
    return CaptureError(" ".join(f"cannot capture {type(model).__qualname__}: {where}{quoted}; {instead}".split()))


def place_of(error: BaseException) -> SourcePlace | None:
    """Returns the user's line that caused an error: the deepest user frame of the first exception that has one."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        found = _deepest(_frames(current.__traceback__))
        if found:
            return found
        current = current.__cause__ or current.__context__
    return None


def place_of_trace(text: str | None) -> SourcePlace | None:
    """Returns the user's line in the `stack_trace` that torch.export stores on a graph node."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*(?:\n\s+(?!File ")([^\n]*))?', text or "")
    return _deepest((file, int(line), source) for file, line, source in frames)


def definition_of(model: nn.Module) -> SourcePlace | None:
    """Returns where `forward` of a model is defined; None if this is not user code or the source is not available."""
    try:
        lines, number = inspect.getsourcelines(type(model).forward)
        file = inspect.getsourcefile(type(model).forward)
    except (OSError, TypeError, AttributeError):
        return None
    offset = next((i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def "))), 0)
    return SourcePlace(file, number + offset, lines[offset].strip()) if file and _is_users(file) else None


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    """Yields the frames below the first one of progc or torch: code that calls capture did not fail."""
    inside = False
    for frame, number in traceback.walk_tb(trace):
        file = frame.f_code.co_filename
        inside = inside or file.startswith(_TRACERS)
        if inside:
            yield file, number, linecache.getline(file, number, frame.f_globals)


def _deepest(frames: Iterator[tuple[str, int, str]]) -> SourcePlace | None:
    found = None
    for file, number, source in frames:
        if _is_users(file):
            found = SourcePlace(file, number, source.strip())
    return found


def _is_users(file: str) -> bool:
    if file.startswith("<") or file.startswith(_TRACERS) or os.path.join("numpy", "") in file:
        return False
    return not file.startswith(_STDLIB) or any(part in file for part in _SITE)


def _shortest(file: str) -> str:
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative
