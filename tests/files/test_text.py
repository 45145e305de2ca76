"""Columns for a terminal."""

from __future__ import annotations

from progc.files.text import aligned, visible


def test_columns_are_aligned_and_lines_have_no_trailing_space() -> None:
    rows = [("axis", "size", "grows"), ("blocks.0.mlp", "768", ""), ("head", "10", "no: f32[batch] [bold]x[/bold]")]
    assert aligned(rows).splitlines() == [
        "axis          size  grows",
        "blocks.0.mlp  768",
        "head          10    no: f32[batch] [bold]x[/bold]",
    ]


def test_columns_to_the_right_with_an_indent() -> None:
    assert aligned([("stage", "steps"), ("0", "1,200")], right=True, indent="  ").splitlines() == [
        "  stage  steps",
        "      0  1,200",
    ]


def test_short_rows_long_lines_and_no_rows() -> None:
    assert aligned([("a", "b", "c"), ("longer",)]) == "a       b  c\nlonger"
    assert aligned([("x" * 500, "y" * 500)]) == "x" * 500 + "  " + "y" * 500
    assert aligned([]) == ""


def test_wide_characters_take_two_columns() -> None:
    assert aligned([("日本", "x"), ("abcd", "y")]) == "日本  x\nabcd  y"


def test_a_cell_cannot_break_its_line_or_steer_the_terminal() -> None:
    assert aligned([("a\nb", "c\td\x1b[31m"), ("e", "f")]) == "a\\nb  c\\td\\x1b[31m\ne     f"
    assert visible("a\nb\t\x1b]0;title\x07") == "a\nb\t\\x1b]0;title\\x07"
