"""The base class of passes: a pass is a pure function from a program to a program, with options as a frozen dataclass.

    @dataclass(frozen=True)
    class GrowDepth(Pass):
        \"\"\"One sentence, then the idea with its source, what is preserved, what it needs.\"\"\"

        name: ClassVar[str] = "grow-depth"
        to: int | None = option(None, help="blocks per chain after growth, at least as many as before")

        def run(self, program: Program) -> PassResult: ...

The fields are the only source for pipeline text, `progc passes`, the command line and the docs. The type of a field is
int, float, str, bool or `tuple[str, ...]`, or one of these `| None`; every field has a default. Importing this module
does not import torch.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from progc.errors import PassOptionError

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.lift.lift import Lift

_KINDS = (int, float, str, bool, tuple)


@dataclasses.dataclass(frozen=True)
class PassResult:
    """The result of a pass.

    Attributes:
        program: the new program, or the input program itself if nothing changed.
        changed: True if the pass changed anything.
        counts: numbers for the history, such as `{"blocks inserted": 6}`.
        lift: how tensors of the input became tensors of the output; None if they are the same objects.
        notes: sentences for the user: what was chosen, and what was left unchanged and why.
        lossless: True if, by analysis, the function in eval mode is preserved exactly; None if not applicable.
        eval_only: reasons why a lossless result is exact in eval mode only; empty if it is exact in train mode too.
    """

    program: Program
    changed: bool
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lift: Lift | None = None
    notes: tuple[str, ...] = ()
    lossless: bool | None = None
    eval_only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass, as used by the parser, the printer, help and docs.

    Attributes:
        field: name of the dataclass field; `name` is the name in pipeline text.
        kind: int, float, str, bool or tuple (of str).
        optional: True if the value may be None.
        default: the default value.
        help: one line with meaning, unit and range.
        choices: the allowed values; empty if any value of the type is allowed.
    """

    field: str
    kind: type
    optional: bool
    default: Any
    help: str
    choices: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name in pipeline text, with `-` for `_`."""
        return self.field.replace("_", "-")

    @property
    def expected(self) -> str:
        """A description of valid values, for messages and help."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {int: "an integer", float: "a number", str: "text", bool: "true or false", tuple: "values a,b,..."}
        return words[self.kind] + (" or none" if self.optional else "")


def option(default: Any, *, help: str, choices: tuple[Any, ...] = ()) -> Any:
    """Declares a field of a pass.

    Args:
        default: value if the pipeline text does not give the option.
        help: one line with meaning, unit and range.
        choices: the allowed values, if only a few are.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC):
    """Base class of all passes (docs/custom-passes.md)."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks the types and choices of all options. Subclasses that extend it call `super().__post_init__()` first.

        Raises:
            PassOptionError: a value has the wrong type or is not among the choices.
        """
        for spec in self.options():
            value = checked(self.name, spec, getattr(self, spec.field))
            object.__setattr__(self, spec.field, value)

    @abc.abstractmethod
    def run(self, program: Program) -> PassResult:
        """Applies the pass. It must not change the input program, its graphs or its tensors."""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Returns the options in the order of declaration."""
        hints = typing.get_type_hints(cls)
        found = []
        for field in dataclasses.fields(cls):
            kind, optional = _kind(hints[field.name])
            assert kind in _KINDS, f"{cls.__name__}.{field.name} has type {hints[field.name]}"
            assert "help" in field.metadata, f"{cls.__name__}.{field.name} is not declared with option()"
            found.append(
                Option(field.name, kind, optional, field.default, field.metadata["help"], field.metadata["choices"])
            )
        return tuple(found)

    @classmethod
    def doc(cls) -> str:
        """Returns the docstring and the options as plain text, as `progc passes NAME` prints them."""
        lines = [cls.name, "", inspect.cleandoc(cls.__doc__ or ""), ""]
        if not cls.options():
            lines.append("No options.")
        else:
            lines.append("Options:")
            for spec in cls.options():
                shown = "none" if spec.default is None else value_text(spec.default) or "empty"
                lines.append(f"  {spec.name}: {spec.expected}; default {shown}")
                lines.append(f"      {spec.help}")
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return to_text([self])


def _kind(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        assert len(parts) == 1, f"an option: expected a single type, got {hint}"
        return _kind(parts[0])[0], True
    return (tuple if typing.get_origin(hint) is tuple else hint), False


def checked(pass_name: str, spec: Option, value: Any) -> Any:
    """`value` as the option stores it (an int for a float option becomes a float, a list a tuple).

    Raises:
        PassOptionError: the value has the wrong type or is not among the choices.
    """
    if value is None and spec.optional:
        return None
    if spec.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if spec.kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    good = isinstance(value, spec.kind) and not (spec.kind is int and isinstance(value, bool))
    if isinstance(value, tuple):
        good = good and all(isinstance(item, str) for item in value)
    if isinstance(value, float):
        good = good and math.isfinite(value)  # neither NaN nor infinity has a pipeline text
    if not good or (spec.choices and value not in spec.choices):
        raise PassOptionError(f"{pass_name}: option {spec.name}: expected {spec.expected}, got {value!r}")
    return value


def value_text(value: Any) -> str:
    """Formats a value for `progc passes`."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


EMPTY_TEXT, NONE_TEXT = "[]", "none"
"""Pipeline text of an empty list of values, and of None."""


def to_text(passes: Iterable[Pass]) -> str:
    """Returns the canonical text of `passes`: options in the order of declaration, without defaults."""
    return ",".join(_pass_text(item) for item in passes)


def _pass_text(item: Pass) -> str:
    texts = []
    for spec in item.options():
        value = getattr(item, spec.field)
        if value != spec.default:
            texts.append(f"{spec.name}={_value_text(spec, value)}")
    return item.name + (f"{{{' '.join(texts)}}}" if texts else "")


def _value_text(spec: Option, value: Any) -> str:
    if value is None:
        return NONE_TEXT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return ",".join(_text(spec, item, len(value) == 1) for item in value) or EMPTY_TEXT
    return _text(spec, value, True)


def _text(spec: Option, value: str, alone: bool) -> str:
    reserved = alone and ((value == EMPTY_TEXT and spec.kind is tuple) or (value == NONE_TEXT and spec.optional))
    return _quoted(value, always=reserved)


def _quoted(value: str, always: bool = False) -> str:
    """Returns `value` as one token: unquoted if it is a word, otherwise as a string."""
    if not always and value and not any(c.isspace() or c in '{}=,"' for c in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
