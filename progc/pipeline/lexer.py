"""Tokens of the pipeline language; the grammar is in `progc.pipeline.text`.

    token  = "{" | "}" | "=" | "," | word | string
    word   = character { character }                  (any character but whitespace and { } = , ")
    string = '"' { any character but " and \\ | "\\" character } '"'

Whitespace, including newlines, is allowed between any two tokens and required only between two words. In a string,
backslash-n is a newline, and a backslash before any other character stands for that character.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from progc.errors import PipelineSyntaxError

_PUNCTUATION = "{}=,"
Kind = Literal["{", "}", "=", ",", "word", "string", "end"]


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


def quoted(value: str, always: bool = False) -> str:
    """Returns `value` as one token: unquoted if it is a word, otherwise as a string."""
    if not always and value and not any(c.isspace() or c in '{}=,"' for c in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


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
