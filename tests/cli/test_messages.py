"""Messages as an interface: every user error of the project is one line, and every one of the front end is tried."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import progc.errors as errors
import progc.models
import progc.passes
from progc.errors import did_you_mean

FOLDERS = [Path(str(package.__file__)).parent for package in (progc, progc.passes, progc.models)]
USER_ERRORS = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.ProgcError)}


def _raises() -> Iterator[tuple[str, ast.Call]]:
    """Place and call of every `raise SomeUserError(...)` in the project."""
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    function = node.exc.func
                    if isinstance(function, ast.Name) and function.id in USER_ERRORS:
                        yield f"{path.name}:{node.lineno}", node.exc


def _literal(node: ast.expr) -> str:
    """The constant parts of a string or f-string."""
    return "".join(
        part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def test_every_user_error_is_one_sentence_without_a_full_stop() -> None:
    found = list(_raises())
    assert len(found) > 50
    for place, call in found:
        assert call.args, f"{place}: no message"
        text = _literal(call.args[0])
        assert "\n" not in text, f"{place}: more than one line"
        assert not text.endswith((".", "!")), f"{place}: ends like prose"


def test_exit_codes_are_those_of_the_command_line() -> None:
    codes = {name: getattr(errors, name).exit_code for name in USER_ERRORS}
    assert {name for name, code in codes.items() if code == 1} == {"CheckError", "VerifyError", "NotLosslessError"}
    assert set(codes.values()) == {1, 2}


def test_suggestions_are_the_nearest_names_in_a_stable_order() -> None:
    known = ["vit_t", "vit_b", "vit_l", "dit_b"]
    assert did_you_mean("vit_bb", known).startswith("; did you mean vit_b,")
    assert did_you_mean("vit", known) == did_you_mean("vit", reversed(known))
    assert did_you_mean("resnet", known) == ""
    assert did_you_mean("", known) == ""
