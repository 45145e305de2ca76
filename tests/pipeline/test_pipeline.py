"""Pipeline text: what it means, its canonical form, and what is wrong with wrong text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import progc.passes
from progc.errors import InputError, PassOptionError, PipelineSyntaxError, did_you_mean
from progc.ir.program import Program
from progc.pipeline.base import Option, Pass, PassResult, option, to_text
from progc.pipeline.registry import PASSES, NamedClasses
from progc.pipeline.text import parse, pointer
from tests.settings import SETTINGS


@dataclasses.dataclass(frozen=True)
class Knead(Pass):
    """Works the dough."""

    name: ClassVar[str] = "knead"
    times: int = option(3, help="number of folds, at least 1")
    rate: float = option(0.5, help="folds per second")
    init: str = option("copy", help="first fold", choices=("copy", "zero"))
    fast: bool = option(False, help="skip the rest in between")
    only: tuple[str, ...] = option((), help="which doughs, globs")
    to: str | None = option(None, help="final size")
    cut_off: float | None = option(None, help="when to stop")
    where: tuple[str, ...] | None = option(None, help="which tables")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 1:
            raise PassOptionError(f"knead: times is {self.times}; expected at least 1")

    def run(self, program: Program) -> PassResult:
        return PassResult(program, changed=False)


@dataclasses.dataclass(frozen=True)
class Rest(Pass):
    """Does nothing."""

    name: ClassVar[str] = "let-rest"

    def run(self, program: Program) -> PassResult:
        return PassResult(program, changed=False)


def test_a_pass_that_does_nothing_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Idle", (Pass,), {"name": "idle"})()


TABLE: dict[str, type[Pass]] = {"knead": Knead, "let-rest": Rest}


def load(name: str) -> type[Pass]:
    if name not in TABLE:
        raise InputError(f"there is no pass `{name}`{did_you_mean(name, TABLE)}")
    return TABLE[name]


GOOD: list[tuple[str, list[Pass]]] = [
    ("", []),
    ("let-rest", [Rest()]),
    ("let-rest{}", [Rest()]),
    ("knead{times=4},let-rest", [Knead(times=4), Rest()]),
    ("knead{ times = 4\n  rate=1e-3 }\n,\n let-rest { } ", [Knead(times=4, rate=1e-3), Rest()]),
    ("knead{rate=.5}", [Knead()]),
    ("knead{rate=2 cut-off=5.}", [Knead(rate=2.0, cut_off=5.0)]),
    ("knead{cut_off=-1e+2}", [Knead(cut_off=-100.0)]),
    ("knead{only=layers.*,blocks.[0-3].attn to=*1.5}", [Knead(only=("layers.*", "blocks.[0-3].attn"), to="*1.5")]),
    ("knead{only=a , b}", [Knead(only=("a", "b"))]),
    ("knead{to=*2 fast=true}", [Knead(to="*2", fast=True)]),
    ("knead{to=none fast=false}", [Knead()]),
    ('knead{to="none"}', [Knead(to="none")]),
    ('knead{only="a b","c=\\"d\\"",e to=""}', [Knead(only=("a b", 'c="d"', "e"), to="")]),
    ("knead{only=[] where=[]}", [Knead(where=())]),
    ('knead{only="[]" where="none"}', [Knead(only=("[]",), where=("none",))]),
    ("knead{where=none,[]}", [Knead(where=("none", "[]"))]),
    ('knead{to="a\\nb\\\\"}', [Knead(to="a\nb\\")]),
]


@pytest.mark.parametrize(("text", "passes"), GOOD)
def test_meaning(text: str, passes: list[Pass]) -> None:
    assert parse(text, load) == passes


@pytest.mark.parametrize(
    ("passes", "text"),
    [
        ([], ""),
        ([Knead(), Rest()], "knead,let-rest"),
        ([Knead(fast=True, times=9, cut_off=1e-9)], "knead{times=9 fast=true cut-off=1e-09}"),
        ([Knead(only=("layers.*", "a b"), to="*2")], 'knead{only=layers.*,"a b" to=*2}'),
        ([Knead(to="none", where=())], 'knead{to="none" where=[]}'),
    ],
)
def test_canonical_text(passes: list[Pass], text: str) -> None:
    assert to_text(passes) == text
    assert ",".join(map(str, passes)) == text


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["none", "[]", "layers.*", "*2", "a,b", '"', "\\", "\n", "{", "true", "1"]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KNEADS = st.builds(
    Knead,
    times=st.integers(1, 10**20),
    rate=NUMBERS | st.integers(-9, 9),
    init=st.sampled_from(["copy", "zero"]),
    fast=st.booleans(),
    only=st.lists(TEXTS, max_size=3).map(tuple),
    to=st.none() | TEXTS,
    cut_off=st.none() | NUMBERS,
    where=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
)


@given(st.lists(KNEADS | st.just(Rest()), max_size=4))
def test_printing_and_parsing_is_the_identity(passes: list[Pass]) -> None:
    text = to_text(passes)
    assert parse(text, load) == passes
    assert to_text(parse(text, load)) == text


def candidates(spec: Option, known: list[Pass]) -> list[Any]:
    """Values that an option may take: what tests/settings.py gives it, and some of its type."""
    some = {
        int: [1, 2, 12],
        float: [0.25, 0.5, 2.0],
        bool: [False, True],
        str: ["*2", "12"],
        tuple: [("*2",), ("a:8",)],
    }
    return [*(getattr(item, spec.field) for item in known), *(spec.choices or some[spec.kind]), spec.default]


def drawn(spec: Option, known: list[Pass]) -> st.SearchStrategy[Any]:
    kinds = {
        int: st.integers(),
        float: NUMBERS,
        bool: st.booleans(),
        str: TEXTS,
        tuple: st.lists(TEXTS, max_size=3).map(tuple),
    }
    values = st.sampled_from(candidates(spec, known))
    values = values if spec.choices else values | kinds[spec.kind]
    return values | st.none() if spec.optional else values


def settings_of(name: str) -> list[Pass]:
    return [parse(text)[0] for setting in SETTINGS[name] for text in (*setting.active, *setting.idle)]


def _leaves(values: Iterable[Any]) -> list[Any]:
    return [leaf for value in values for leaf in (value if isinstance(value, tuple) else [value])]


def made(kind: type[Pass], values: dict[str, Any]) -> Pass | None:
    """The pass, None if it refuses these values; then in one line, but for line breaks of a value that it quotes."""
    try:
        return kind(**values)
    except InputError as error:
        assert len(str(error)) > 20 and ("\n" not in str(error) or "\n" in "".join(map(str, _leaves(values.values()))))
        return None


@pytest.mark.parametrize("name", PASSES)
@settings(phases=[Phase.explicit, Phase.generate])  # a failure shows its text; a shorter one takes minutes to find
@given(data=st.data())
def test_every_pass_prints_and_parses_whatever_its_options(name: str, data: st.DataObject) -> None:
    kind, known = progc.pipeline.registry.load_pass(name), settings_of(name)
    chosen = [spec for spec in kind.options() if data.draw(st.booleans(), label=spec.name)]
    item = made(kind, {spec.field: data.draw(drawn(spec, known), label=spec.name) for spec in chosen})
    if item is not None:
        text = to_text([item])
        assert parse(text) == [item] and to_text(parse(text)) == text and str(item) == text
        assert parse(f"{text},{text}") == [item, item]


@pytest.mark.parametrize("name", PASSES)
def test_the_options_of_every_pass_are_really_tried(name: str) -> None:
    """What is drawn above is not refused throughout: most options take another value than their default."""
    kind, known = progc.pipeline.registry.load_pass(name), settings_of(name)
    taken = []
    for spec in kind.options():
        values = [value for value in dict.fromkeys(candidates(spec, known)) if value != spec.default]
        tries = [{spec.field: value} for value in values] + [{**vars(item), spec.field: values[0]} for item in known]
        item = next(filter(None, (made(kind, values) for values in tries)), None)
        if item is not None:
            assert parse(to_text([item])) == [item]
            taken.append(spec.name)
    assert len(taken) >= len(kind.options()) / 2, f"{name}: only {taken} take another value"


@given(st.text(alphabet='knead{}=,"\\ \n*1.e-', max_size=30))
def test_any_text_parses_or_says_where_it_does_not(text: str) -> None:
    try:
        passes = parse(text, load)
    except PipelineSyntaxError as error:
        assert error.text == text and 0 <= error.position <= len(text)
        assert pointer(error).count("\n") == 1
    else:
        assert parse(to_text(passes), load) == passes


# Each line: text, the same width with a caret under the mistake, and the message.
BAD = [
    ("kneed", "^", "there is no pass `kneed`; did you mean knead?"),
    ("let_rest", "^", "there is no pass `let_rest`; did you mean let-rest?"),
    ("knead{tims=3}", "      ^", "knead has no option `tims`; did you mean times?"),
    ("knead{zzz=3}", "      ^", "knead has no option `zzz`; it has times, rate, init, fast, only, to, cut-off, where"),
    ("let-rest{a=3}", "         ^", "let-rest has no option `a`; it has no options"),
    ("knead{times=3 times=4}", "              ^", "knead: option times is given twice"),
    ("knead{cut-off=3 cut_off=4}", "                ^", "knead: option cut-off is given twice"),
    ("knead{times=3,rate=4}", "             ^", "separate options with spaces, not commas"),
    ("knead{only=a,b,rate=4}", "              ^", "separate options with spaces, not commas"),
    ("knead{times=3, }", "               ^", "expected a value for option times (an integer), found `}`"),
    ("knead{,times=3}", "      ^", "separate options with spaces, not commas"),
    ("knead{times=3,4}", "             ^", "knead: option times: expected one value, got several"),
    ("knead{times=}", "            ^", "expected a value for option times (an integer), found `}`"),
    ("knead{times}", "           ^", "expected `=` after option `times`, found `}`"),
    (
        "knead{only=a b}",
        "              ^",
        "expected `=` after option `b`, found `}`; separate several values of one option",
    ),
    ("knead{=3}", "      ^", "expected the name of an option of knead, found `=`"),
    ("knead{times=three}", "            ^", "knead: option times: expected an integer, got 'three'"),
    ("knead{times=3.5}", "            ^", "knead: option times: expected an integer, got '3.5'"),
    ('knead{times="3"}', "            ^", "knead: option times: expected an integer, got '3'"),
    ("knead{rate=fast}", "           ^", "knead: option rate: expected a number, got 'fast'"),
    ("knead{rate=1e999}", "           ^", "knead: option rate: expected a number, got inf"),
    ("knead{fast=yes}", "           ^", "knead: option fast: expected true or false, got 'yes'"),
    ("knead{init=random}", "           ^", "knead: option init: expected one of copy, zero, got 'random'"),
    ("knead{times=none}", "            ^", "knead: option times: expected an integer, got 'none'"),
    ("knead{times=0}", "^", "knead: times is 0; expected at least 1"),
    ("knead{times=3", "     ^", "the options of knead have no end; add `}`"),
    ("knead{times=3}}", "              ^", "expected a comma between passes, found `}`"),
    ("knead let-rest", "      ^", "expected a comma between passes, found `let-rest`"),
    ("knead,", "      ^", "expected the name of a pass, found the end of the text"),
    ("knead,,let-rest", "      ^", "expected the name of a pass, found `,`"),
    ('"knead"', "^", "expected the name of a pass, found `knead`"),
    ('knead{to="abc}', "         ^", 'the quoted value has no end; add a closing "'),
    ('knead{to="abc"fast=true}', "              ^", "expected a space or a comma after a quoted value"),
]


@pytest.mark.parametrize(("text", "caret", "message"), BAD)
def test_wrong_text(text: str, caret: str, message: str) -> None:
    with pytest.raises(PipelineSyntaxError) as raised:
        parse(text, load)
    assert str(raised.value).startswith(message)
    assert pointer(raised.value) == f"{text}\n{caret}"
    assert raised.value.exit_code == 2


def test_the_caret_is_in_the_line_of_the_mistake() -> None:
    with pytest.raises(PipelineSyntaxError) as raised:
        parse("let-rest,\nknead{times=x},\nlet-rest", load)
    assert pointer(raised.value) == "knead{times=x},\n            ^"


@pytest.mark.parametrize("values", [{"times": True}, {"times": 1.0}, {"only": "a"}, {"only": (1,)}, {"to": 3}])
def test_wrong_values_from_python(values: dict[str, Any]) -> None:
    with pytest.raises(PassOptionError, match=f"knead: option {next(iter(values))}: expected "):
        Knead(**values)


def test_values_from_python_are_stored_as_declared() -> None:
    item = Knead(rate=1, only=["a"])  # type: ignore[arg-type]
    assert item == Knead(rate=1.0, only=("a",)) and isinstance(item.rate, float)


def test_doc_is_made_from_the_fields() -> None:
    lines = Knead.doc().splitlines()
    assert lines[:5] == ["knead", "", "Works the dough.", "", "Options:"]
    assert "  init: one of copy, zero; default copy" in lines
    assert "  cut-off: a number or none; default none" in lines
    assert "  only: values a,b,...; default empty" in lines
    assert "No options." in Rest.doc()


def test_every_listed_pass_loads_under_its_name() -> None:
    for name in progc.pipeline.registry.names():
        found = progc.pipeline.registry.load_pass(name)
        assert found.name == name
        assert parse(to_text([found()])) == [found()]
        assert found.__doc__ and all(spec.help for spec in found.options())


def test_unknown_pass_names_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no pass `grow-dept`; did you mean grow-depth"):
        progc.pipeline.registry.load_pass("grow-dept")


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two passes are called `a`: x:A and y:A; rename or uninstall one"):
        NamedClasses("pass", "passes", {"a": "x:A"}, "no.group").merged([("b", "y:B"), ("a", "y:A")])
    table = NamedClasses("pass", "passes", {"a": "x:A"}, "no.group")
    assert table.merged([("b", "y:B"), ("b", "y:B")]) == {"a": "x:A", "b": "y:B"}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("progc.no_such:A", "pass `a` cannot be loaded from progc.no_such:A: No module named"),
        ("progc.errors:A", "pass `a` cannot be loaded from progc.errors:A: module 'progc.errors' has no attribute"),
        ("progc.passes.grow_depth:GrowDepth", "whose own name is `grow-depth`; use the same name for both"),
    ],
)
def test_a_pass_that_does_not_load(monkeypatch: pytest.MonkeyPatch, place: str, message: str) -> None:
    monkeypatch.setattr(progc.pipeline.registry, "_CLASSES", NamedClasses("pass", "passes", {"a": place}, "no.group"))
    with pytest.raises(InputError, match=message):
        progc.pipeline.registry.load_pass("a")


def imports_torch(statements: Iterable[str]) -> bool:
    code = "\n".join([*statements, "import sys", "print('torch' in sys.modules)"])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "True\n"


def test_looking_at_names_does_not_import_torch() -> None:
    assert not imports_torch(["import progc.passes", "progc.pipeline.registry.names()", "import progc.pipeline.text"])


def test_the_torch_test_can_fail() -> None:
    assert imports_torch(["import progc.pipeline.manager"])
