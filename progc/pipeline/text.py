"""Pipelines as text: `grow-depth{to=12 init=copy},grow-width{to=*2}`.

    pipeline = [ pass { "," pass } ]
    pass     = word [ "{" { option } "}" ]
    option   = word "=" value { "," value }
    value    = word | string
    word     = character { character }                (any character but whitespace and { } = , ")
    string   = '"' { any character but " and \\ | "\\" character } '"'

Whitespace, including newlines, is allowed between any two tokens and required only between two words. In a string,
backslash-n is a newline, and a backslash before any other character stands for that character.

Commas separate passes, and the values of one option; spaces separate options. Globs, dots and relative sizes need no
quotes (`layers.*`, `*1.5`). The type of the option decides how a value is read: `12`, `1e-3`, `.5`, `true`, `none`. An
empty list of values is `[]`, and text that would be read as `none` or `[]` is quoted. Parsing, printing and parsing
again gives equal passes; printing leaves out defaults.

`parse_inits` reads the text of `--init`: `width=copy,depth=identity`, or one word that is unique to width or depth.
With `depth=mogrow` it may also have `source=all` and `ema=0.9996`, the options of `grow-depth`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from progc.errors import InputError, PassOptionError, PipelineSyntaxError, did_you_mean
from progc.pipeline.base import EMPTY_TEXT, NONE_TEXT, Option, Pass, checked
from progc.pipeline.registry import load_pass

Loader = Callable[[str], type[Pass]]

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_PUNCTUATION = "{}=,"
Kind = Literal["{", "}", "=", ",", "word", "string", "end"]


def parse(text: str, load: Loader = load_pass) -> list[Pass]:
    """Returns the passes that `text` names, in order; an empty list for an empty text.

    Args:
        text: the pipeline.
        load: returns the pass class of a name; raises InputError for an unknown name.

    Raises:
        PipelineSyntaxError: the text is not valid; holds the text and the position of the mistake (see `pointer`).
    """
    return _Parser(text, load).pipeline()


def pointer(error: PipelineSyntaxError) -> str:
    """Returns the line of text with the mistake, and a second line with a caret below it."""
    start = error.text.rfind("\n", 0, error.position) + 1
    end = error.text.find("\n", error.position)
    line = error.text[start : end if end >= 0 else len(error.text)]
    return f"{line}\n{' ' * (error.position - start)}^"


class _Parser:
    def __init__(self, text: str, load: Loader) -> None:
        self.text = text
        self.load = load
        self.tokens = tokens(text)
        self.index = 0

    def peek(self) -> Token:
        return self.tokens[self.index]

    def take(self) -> Token:
        token = self.peek()
        self.index += 1
        return token

    def fail(self, message: str, at: Token) -> PipelineSyntaxError:
        return PipelineSyntaxError(message, self.text, at.start)

    def pipeline(self) -> list[Pass]:
        passes: list[Pass] = []
        if self.peek().kind == "end":
            return passes
        while True:
            passes.append(self.one_pass())
            if self.peek().kind == "end":
                return passes
            if self.peek().kind != ",":
                raise self.fail(f"expected a comma between passes, found {self.peek()}", self.peek())
            self.take()

    def one_pass(self) -> Pass:
        name = self.take()
        if name.kind != "word":
            raise self.fail(f"expected the name of a pass, found {name}", name)
        try:
            kind = self.load(name.text)
        except InputError as error:
            raise self.fail(str(error), name) from error
        values: dict[str, Any] = {}
        if self.peek().kind == "{":
            opening = self.take()
            while self.peek().kind != "}":
                self.option(kind, values, opening)
            self.take()
        try:
            return kind(**values)
        except PassOptionError as error:
            raise self.fail(str(error), name) from error

    def option(self, kind: type[Pass], values: dict[str, Any], opening: Token) -> None:
        name = self.take()
        if name.kind == "end":
            raise self.fail(f"the options of {kind.name} have no end; add `}}`", opening)
        if name.kind == ",":
            raise self.fail("separate options with spaces, not commas", name)
        if name.kind != "word":
            raise self.fail(f"expected the name of an option of {kind.name}, found {name}", name)
        if self.peek().kind != "=":
            hint = "; separate several values of one option with commas" if values else ""
            raise self.fail(f"expected `=` after option {name}, found {self.peek()}{hint}", self.peek())
        spec = self.find(kind, name)
        if spec.field in values:
            raise self.fail(f"{kind.name}: option {spec.name} is given twice", name)
        self.take()
        values[spec.field] = self.values(kind, spec)

    def find(self, kind: type[Pass], name: Token) -> Option:
        wanted = name.text.replace("_", "-")
        names = [spec.name for spec in kind.options()]
        for spec in kind.options():
            if spec.name == wanted:
                return spec
        known = f"; it has {', '.join(names)}" if names else "; it has no options"
        raise self.fail(f"{kind.name} has no option {name}{did_you_mean(wanted, names) or known}", name)

    def values(self, kind: type[Pass], spec: Option) -> Any:
        given = [self.value(spec)]
        commas = []
        while self.peek().kind == ",":
            if self.tokens[self.index + 1].kind == "word" and self.tokens[self.index + 2].kind == "=":
                raise self.fail("separate options with spaces, not commas", self.peek())
            commas.append(self.take())
            given.append(self.value(spec))
        if spec.kind is not tuple and commas:
            raise self.fail(f"{kind.name}: option {spec.name}: expected one value, got several", commas[0])
        try:
            return checked(kind.name, spec, _convert(spec, given))
        except PassOptionError as error:
            raise self.fail(str(error), given[0]) from error

    def value(self, spec: Option) -> Token:
        token = self.take()
        if token.kind not in ("word", "string"):
            raise self.fail(f"expected a value for option {spec.name} ({spec.expected}), found {token}", token)
        return token


def _convert(spec: Option, given: Sequence[Token]) -> Any:
    """Returns the Python value of an option; a word of the wrong type stays text, and `checked` rejects it."""
    first = given[0]
    if len(given) == 1 and first.kind == "word":
        word = first.text
        if spec.optional and word == NONE_TEXT:
            return None
        if spec.kind is tuple and word == EMPTY_TEXT:
            return ()
        if spec.kind is bool and word in ("true", "false"):
            return word == "true"
        if spec.kind is int and _INTEGER.fullmatch(word):
            return int(word)
        if spec.kind is float and _NUMBER.fullmatch(word):
            return float(word)
    return tuple(token.text for token in given) if spec.kind is tuple else first.text


@dataclasses.dataclass(frozen=True)
class Token:
    """One token: `text` is the decoded content, `start` and `end` are positions in the pipeline text."""

    kind: Kind
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return "the end of the text" if self.kind == "end" else f"`{self.text}`"


def tokens(text: str) -> list[Token]:
    """Returns all tokens of `text`, followed by an "end" token.

    Raises:
        PipelineSyntaxError: a string has no closing quote, or no space between it and the next word.
    """
    found: list[Token] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character.isspace():
            position += 1
            continue
        if character in _PUNCTUATION:
            token = Token(character, character, position, position + 1)  # type: ignore[arg-type]
        elif character == '"':
            token = _string(text, position)
        else:
            token = _word(text, position)
        if found and found[-1].end == token.start and {found[-1].kind, token.kind} <= {"word", "string"}:
            raise PipelineSyntaxError("expected a space or a comma after a quoted value", text, token.start)
        found.append(token)
        position = token.end
    found.append(Token("end", "", len(text), len(text)))
    return found


def _word(text: str, start: int) -> Token:
    end = start
    while end < len(text) and not text[end].isspace() and text[end] not in '{}=,"':
        end += 1
    return Token("word", text[start:end], start, end)


def _string(text: str, start: int) -> Token:
    content: list[str] = []
    position = start + 1
    while position < len(text):
        character = text[position]
        if character == '"':
            return Token("string", "".join(content), start, position + 1)
        if character == "\\" and position + 1 < len(text):
            position += 1
            character = "\n" if text[position] == "n" else text[position]
        content.append(character)
        position += 1
    raise PipelineSyntaxError('the quoted value has no end; add a closing "', text, start)


INITS: dict[str, tuple[str, ...]] = {
    "width": ("copy", "zero", "random"),
    "depth": ("identity", "interpolate", "stack", "mogrow", "random"),
}
MOGROW = {"source": "new or all", "ema": "a decay such as 0.9996"}
"""What may be given besides `depth=mogrow`, with the values in words."""
_WORDS = "; ".join(f"{kind}={'|'.join(words)}" for kind, words in INITS.items())
_FORMS = f"{_WORDS}; with depth=mogrow also source, ema"


def parse_inits(text: str) -> dict[str, str]:
    """Returns the inits that `text` names for `width` and `depth`; a kind that is not named keeps its default.

    Returns:
        Words by `width` and `depth`, and the texts of `source` and `ema` if they are given with `depth=mogrow`.

    Raises:
        InputError: an unknown kind or word, a word that exists for both kinds, or a kind given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        kind, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            word, kinds = kind, [name for name, words in INITS.items() if kind in words]
            if len(kinds) > 1:
                raise InputError(
                    f"init `{word}` exists for {' and '.join(kinds)}; name the kind, as in {kinds[0]}={word}"
                )
            kind = kinds[0] if kinds else ""
        if kind in MOGROW:
            _check_mogrow(part.strip(), kind, word)
        elif not kind or (kind in INITS and word not in INITS[kind]):
            words = INITS[kind] if kind else [item for words in INITS.values() for item in words]
            raise InputError(f"unknown init `{part.strip()}`{did_you_mean(word, words) or ';'} expected {_FORMS}")
        elif kind not in INITS:
            raise InputError(f"init `{part.strip()}`: expected {_FORMS}; got the kind `{kind}`")
        if kind in found:
            raise InputError(f"init `{text}` gives {kind} twice; give it once")
        found[kind] = word
    more = [kind for kind in MOGROW if kind in found]
    if more and found.get("depth") != "mogrow":
        raise InputError(f"init `{text}`: {more[0]} is for depth=mogrow; write depth=mogrow,{more[0]}={found[more[0]]}")
    return found


def depth_options(inits: Mapping[str, str]) -> dict[str, Any]:
    """Returns the options of `grow-depth` that the inits of `parse_inits` name: `init`, `source`, `ema`."""
    found: dict[str, Any] = {"init": inits.get("depth", "identity")}
    if "source" in inits:
        found["source"] = inits["source"]
    if "ema" in inits:
        found["ema"] = float(inits["ema"])
    return found


def _check_mogrow(part: str, kind: str, word: str) -> None:
    good = word in ("new", "all") if kind == "source" else bool(_NUMBER.fullmatch(word)) and 0 < float(word) < 1
    if not good:
        raise InputError(f"init `{part}`: expected {MOGROW[kind]}")
