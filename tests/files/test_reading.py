"""Bounded reading: links, pipes, sizes, and headers of safetensors files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from progc.errors import InputError
from progc.files.reading import open_file, read_header, read_object, read_text


def test_links_are_followed_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é", encoding="utf-8")
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link", links=True) == "é"
    with pytest.raises(InputError, match="link is a symbolic link; expected a file of the folder itself"):
        read_text(tmp_path / "link")


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        for links in (False, True):
            with pytest.raises(InputError, match="is not a regular file"):
                open_file(path, links=links)
    with pytest.raises(InputError, match="none is missing"):
        read_text(tmp_path / "none")


def test_text_has_a_limit_and_an_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1001)
    assert len(read_text(path, 1001)) == 1001
    with pytest.raises(InputError, match="has 1,001 bytes; expected at most 1,000"):
        read_text(path, 1000)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not a text file in UTF-8"):
        read_text(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds a list; expected a JSON object"):
        read_object(path)


def test_a_header_gives_names_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"b": torch.zeros(2, 3), "a": torch.zeros(0, dtype=torch.int64)}, path, metadata={"x": "y"})
    header = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.items()} == {
        "a": ("I64", (0,)),
        "b": ("F32", (2, 3)),
    }
    assert max(entry.end for entry in header.values()) == path.stat().st_size
    with path.open("ab") as file:
        file.write(b"1")
    with pytest.raises(InputError, match=r"is not a readable safetensors file \(it has \d+ bytes, but \d+ by"):
        read_header(path)


def test_reading_and_writing_need_no_torch() -> None:
    code = (
        "import sys, progc.files.json, progc.files.reading, progc.files.writing as w\n"
        "import progc.files.json as j; j.encode({'a': (1.0, None)}, 'x')\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
