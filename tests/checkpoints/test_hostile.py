"""Folders made to do harm: nothing is run, nothing is written, nothing but InputError comes out."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from progc.checkpoints import latest, load, mark_best, prune, save, verify
from progc.checkpoints.keeping import BEST, best
from progc.checkpoints.manifest import NAME, sealed
from progc.errors import InputError
from tests.checkpoints.running import new_state, train
from tests.command import files_below, in_process

EVENTS: list[str] = []
WATCHING = False
WATCHED = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.rename", "os.remove"}
WATCHED |= {"os.mkdir", "os.symlink", "os.link", "shutil.rmtree", "os.truncate", "socket.connect"}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHING and (event in WATCHED or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)):
        EVENTS.append(f"{event} {arguments}")


sys.addaudithook(_hook)


@contextlib.contextmanager
def nothing_happens(folder: Path) -> Iterator[None]:
    """No pickle is opened, no program started, no file written, renamed or removed; asked of the interpreter itself."""
    global WATCHING
    EVENTS.clear()
    before = files_below(folder)
    WATCHING = True
    try:
        yield
    finally:
        WATCHING = False
    assert EVENTS == [] and files_below(folder) == before


def test_the_watch_can_fail(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), nothing_happens(tmp_path):
        pickle.loads(pickle.dumps(Path))
    with pytest.raises(AssertionError), nothing_happens(tmp_path):
        (tmp_path / "x").write_text("x")


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def reseal(folder: Path, **changes: Any) -> None:
    """A manifest that agrees with the files that are there, as an attacker would write it."""
    value = {key: item for key, item in json.loads((folder / NAME).read_text()).items() if key != "seal"}
    value["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != NAME and path.is_file()
    }
    (folder / NAME).write_text(sealed({**value, **changes}))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = new_state()
    train(state, 2)
    return save(tmp_path_factory.mktemp("good"), state, 2, config={"a": 1})


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, the only one of its run."""
    shutil.copytree(good, tmp_path / "run" / good.name)
    return tmp_path / "run" / good.name


def read_all(folder: Path) -> str:
    """Reads a checkpoint in every way there is; the message of the first refusal, empty if there was none."""
    message = ""
    for read in (verify, lambda path: latest(path.parent, tell=lambda _: None), load, _restored):
        try:
            read(folder)
        except InputError as error:
            message = message or str(error)
    return message


def _restored(folder: Path) -> None:
    found = load(folder)
    assert found.config is None or isinstance(found.config, dict)
    found.data, found.schedule, found.decays, found.weights()
    found.restore(new_state())


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    outside = folder.parent.parent
    with nothing_happens(outside):
        message = read_all(folder)
    assert message and all(part in message for part in parts), message
    assert "\n" not in message and "\x1b" not in message and len(message) < 700
    shown = in_process(capsys)("inspect", folder)
    assert "Traceback" not in shown.err and shown.code in (0, 2)
    assert not (outside / "pwned").exists()


def test_pickles_under_any_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = pickle.dumps(Bomb(folder.parent.parent / "pwned"))
    for name in ("model.safetensors", "training.json", "rng-00000.json", "rng-00000.safetensors", "optimizer.json"):
        old = (folder / name).read_bytes()
        (folder / name).write_bytes(bomb)
        reseal(folder)
        refused(folder, capsys, name)
        (folder / name).write_bytes(old)
    for name in ("model.pt", ".metadata", "__0_0.distcp", "data.pkl"):
        (folder / name).write_bytes(bomb)
        reseal(folder)
        refused(folder, capsys, name)
        (folder / name).unlink()
    (folder / NAME).write_bytes(bomb)
    refused(folder, capsys, NAME)


def header(value: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "huge": header({}, length=2**64 - 1),
    "longer than the file": header({}, length=3),
    "nested": header(b"[" * 100_000),
    "nested objects": header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a list": header([1]),
    "overlap": header({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    "same place": header({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    "gap": header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "negative": header({"a": entry(-4, 0)}, bytes(4)),
    "beyond": header({"a": entry(0, 2**40, (2**38,))}, bytes(4)),
    "huge shape": header({"a": entry(0, 0, (0, 2**62, 2**62))}),
    "huger shape": header({"a": entry(0, 4, (10**400,))}, bytes(4)),
    "rank": header({"a": entry(0, 4, (1,) * 1000)}, bytes(4)),
    "boolean shape": header({"a": entry(0, 4, [True])}, bytes(4)),
    "float offset": header({"a": entry(0.0, 4)}, bytes(4)),
    "unknown dtype": header({"a": entry(0, 4, dtype="O")}, bytes(4)),
    "dtype is a list": header({"a": entry(0, 4, dtype=["F32"])}, bytes(4)),
    "infinity": header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4)),
    "digits": header(b'{"a":' + b"9" * 10_000 + b"}"),
    "no text": header(b"\xff\xfe{}"),
    "escape": header({"\x1b[31m": entry(0, 9)}, bytes(4)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_safetensors(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(HEADERS[case])
    reseal(folder)
    refused(folder, capsys, "model.safetensors")


FILE = {"sha256": "0" * 64, "size": 1}
MANIFESTS: dict[str, dict[str, Any]] = {
    **{
        f"name {name!r}": {"files": {name: FILE}}
        for name in (
            "../x.json",
            "/etc/passwd",
            "/tmp/x.json",
            "a/b.json",
            "..",
            "",
            "manifest.json",
            ".x.json",
            "x.pt",
        )
    },
    **{f"name {name!r}": {"files": {name: FILE}} for name in ("a\0.json", "a\n.json", "..\\x.json", "C:x.json")},
    "size": {"files": {"model.safetensors": {**FILE, "size": 10**400}}},
    "negative size": {"files": {"model.safetensors": {**FILE, "size": -1}}},
    "sha": {"files": {"model.safetensors": {**FILE, "sha256": "0"}}},
    "files": {"files": []},
    "step": {"step": -1},
    "boolean step": {"step": True},
    "large step": {"step": 10**100},
    "text": {"created": "\x1b[31m"},
    "unknown": {"extra": 1},
    "holds": {"holds": [1]},
    "versions": {"versions": {"a": {}}},
    "format": {"format": "torch"},
    "version": {"version": "1"},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent.parent / "x.json").write_text("{}")
    reseal(folder, **MANIFESTS[case])
    refused(folder, capsys, NAME)


@pytest.mark.parametrize("name", [NAME, "training.json", "optimizer.json", "rng-00000.json", "config.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 70 + "1" + "}" * 70, "9" * 10_000, "NaN", '{"a": 1e999}', "[]", "", '{"a": -Infinity}'],
    ids=range(8),
)
def test_json(name: str, text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_text(text)
    if name != NAME:
        reseal(folder)
    refused(folder, capsys, name)


def _linked(folder: Path, name: str, outside: Path) -> None:
    shutil.copy(folder / name, outside)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "model.safetensors": lambda folder, outside: _linked(folder, "model.safetensors", outside),
    NAME: lambda folder, outside: _linked(folder, NAME, outside),
    "training.json": lambda folder, _: ((folder / "training.json").unlink(), os.mkfifo(folder / "training.json")),  # type: ignore
    "config.json": lambda folder, _: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),  # type: ignore
    "loop": lambda folder, _: (folder / "loop").symlink_to(folder),
}


@pytest.mark.parametrize("name", PLACES)
def test_links_pipes_and_folders_in_place_of_files(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PLACES[name](folder, folder.parent.parent / "outside")
    refused(folder, capsys, name)


def test_a_linked_checkpoint_is_none_of_the_run_and_is_not_removed(good: Path, tmp_path: Path) -> None:
    state = new_state()
    for step in (3, 4):
        save(tmp_path, state, step)
    (tmp_path / "step-00000005").symlink_to(good)
    assert latest(tmp_path) == tmp_path / "step-00000004"
    assert prune(tmp_path, keep=1).removed == ("step-00000003",)
    assert good.is_dir() and verify(good)


@pytest.mark.parametrize("value", [{"step": 10**30, "manifest": ""}, {"step": 2, "manifest": 3}, {}, {"step": "../x"}])
def test_marks_of_the_best(value: dict[str, Any], folder: Path) -> None:
    mark_best(folder.parent, 2)
    assert best(folder.parent) == folder
    (folder.parent / BEST).write_text(sealed(value))
    with pytest.raises(InputError, match="best.json does not name a checkpoint"):
        best(folder.parent)


ODD: tuple[Any, ...] = (None, True, -1, 2**70, 10**300, 1.5, "x", "../x", [], {}, {"tensor": "x"}, {"list": 3})
ODD += ({"dict": []}, {"float": "x"})
ODD += ({"items": [[{"list": []}, 1]]}, {"counter": 1}, {"tensor": []}, {"a": 1, "b": 2}, {"tuple": [[[]]]})


def test_any_value_may_be_any_other(folder: Path) -> None:
    """Of JSON files under a manifest that agrees with them; whatever is accepted, is accepted without harm."""
    rng = random.Random(4)
    accepted = 0
    for number in range(120):
        path = folder / ("training.json", "optimizer.json", "rng-00000.json")[number % 3]
        old = path.read_text()
        value = json.loads(old)
        _mutate(value, rng)
        path.write_text(json.dumps(value))
        reseal(folder)
        with nothing_happens(folder.parent.parent):
            accepted += not read_all(folder)
        path.write_text(old)
    assert accepted < 120


def _mutate(value: Any, rng: random.Random) -> None:
    """Replaces, removes or doubles one part, any depth."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        held = todo.pop()
        keys = list(held) if isinstance(held, dict) else list(range(len(held)))[:5]
        places += [(held, key) for key in keys]
        todo += [held[key] for key in keys if isinstance(held[key], (dict, list))]
    held, key = rng.choice(places)
    if rng.random() < 0.2:
        del held[key]
    else:
        held[key] = copy.deepcopy(rng.choice(ODD))
