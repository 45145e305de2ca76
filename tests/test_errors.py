"""Messages of any exception on one line."""

from __future__ import annotations

from progc.errors import first_of, one_line


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("size  4\n  of\tdim 1\n")) == "size 4 of dim 1"


def test_a_message_without_words_names_the_class() -> None:
    assert one_line(AssertionError()) == "AssertionError"
    assert one_line(AssertionError(" \n"), empty="no message") == "no message"


def test_a_long_message_is_cut_and_marked() -> None:
    assert one_line(ValueError("x" * 20), 20) == "x" * 20
    assert one_line(ValueError("x" * 21), 20) == "x" * 17 + "..."


def test_what_is_left_out_of_a_list_is_counted() -> None:
    names = ["a", "b", "c"]
    assert [first_of(names, count) for count in (1, 2, 3)] == ["a and 2 more", "a, b and 1 more", "a, b, c"]
    assert first_of(["a"]) == "a"
