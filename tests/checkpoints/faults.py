"""Damage of every kind to the files of checkpoints, one at a time; used by tests and by bench/checkpoint_faults.py."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from progc.checkpoints import latest, load
from progc.errors import InputError

Undo = Callable[[], None]
KINDS = ("bit", "truncation", "longer", "zeros", "missing", "swapped", "exchanged", "link", "extra", "folder")


def trial(run: Path, kind: str, rng: random.Random) -> str | None:
    """Damages the newest of three checkpoints, checks what `latest` and `load` make of it, and puts all back.

    Returns:
        None if it was detected, an older one was used, and the message names the file; else what went wrong.
    """
    folders = sorted(run.glob("step-*"))
    assert len(folders) == 3
    names, expected, undo = DAMAGES[kind](folders, rng)
    messages: list[str] = []
    try:
        found = latest(run, tell=messages.append)
        broken = list(reversed(folders))[: folders[::-1].index(expected)]
        if found != expected:
            return f"{kind} of {names}: went on from {found}, expected {expected}"
        if len(messages) != len(broken) or not all(name in " ".join(messages) for name in names):
            return f"{kind} of {names}: the messages are {messages}"
        for folder in broken:
            try:
                load(folder)
            except InputError as error:
                if not any(name in str(error) for name in names):
                    return f"{kind} of {names}: load says {error}"
            else:
                return f"{kind} of {names}: {folder} is loaded"
    finally:
        undo()
    return None


Damage = tuple[list[str], Path, Undo]


def _chosen(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def _rewritten(folders: list[Path], rng: random.Random, change: Callable[[bytearray], bytes]) -> Damage:
    path = _chosen(folders[-1], rng)
    old = path.read_bytes()
    path.write_bytes(change(bytearray(old)))
    assert path.read_bytes() != old
    return [path.name], folders[-2], lambda: _put(path, old)


def _put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def bit(folders: list[Path], rng: random.Random) -> Damage:
    def change(data: bytearray) -> bytes:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    return _rewritten(folders, rng, change)


def truncation(folders: list[Path], rng: random.Random) -> Damage:
    return _rewritten(folders, rng, lambda data: bytes(data[: rng.randrange(len(data))]))


def longer(folders: list[Path], rng: random.Random) -> Damage:
    return _rewritten(folders, rng, lambda data: bytes(data) + rng.randbytes(rng.randint(1, 64)))


def zeros(folders: list[Path], rng: random.Random) -> Damage:
    def change(data: bytearray) -> bytes:
        places = [place for place, byte in enumerate(data) if byte]
        start = rng.choice(places)
        length = min(rng.choice((1, 16, 512)), len(data) - start)
        data[start : start + length] = bytes(length)
        return bytes(data)

    return _rewritten(folders, rng, change)


def missing(folders: list[Path], rng: random.Random) -> Damage:
    path = _chosen(folders[-1], rng)
    old = path.read_bytes()
    path.unlink()
    return [path.name], folders[-2], lambda: _put(path, old)


def swapped(folders: list[Path], rng: random.Random) -> Damage:
    """Files of one name, of the two newest checkpoints; those with the same contents do no harm."""
    pairs = [(folders[-1] / path.name, path) for path in sorted(folders[-2].iterdir())]
    one, two = rng.choice([pair for pair in pairs if pair[0].read_bytes() != pair[1].read_bytes()])
    return _interchanged(one, two, [one.name], folders[-3])


def exchanged(folders: list[Path], rng: random.Random) -> Damage:
    """Two files of one checkpoint."""
    files = sorted(folders[-1].iterdir())
    pairs = [(a, b) for a in files for b in files if a < b and a.read_bytes() != b.read_bytes()]
    one, two = rng.choice(pairs)
    undo = _interchanged(one, two, [], folders[-2])[2]
    return [folders[-1].name], folders[-2], undo


def _interchanged(one: Path, two: Path, names: list[str], expected: Path) -> Damage:
    third = one.parent.parent / "third"

    def change() -> None:
        os.rename(one, third)
        os.rename(two, one)
        os.rename(third, two)

    change()
    return names, expected, change


def link(folders: list[Path], rng: random.Random) -> Damage:
    """A file that is a link to its own contents outside."""
    path = _chosen(folders[-1], rng)
    outside = folders[-1].parent / "outside"
    os.rename(path, outside)
    path.symlink_to(outside)
    return [path.name], folders[-2], lambda: os.replace(outside, path)


def extra(folders: list[Path], rng: random.Random) -> Damage:
    path = folders[-1] / rng.choice(("model.pt", ".metadata", "notes.txt", "optimizer-2.safetensors"))
    path.write_bytes(rng.randbytes(16))
    return [path.name], folders[-2], path.unlink


def folder(folders: list[Path], rng: random.Random) -> Damage:
    """An older checkpoint under the name of a newer one."""
    aside = folders[-1].parent / "aside"
    os.rename(folders[-1], aside)
    shutil.copytree(rng.choice(folders[:-1]), folders[-1])

    def undo() -> None:
        shutil.rmtree(folders[-1])
        os.rename(aside, folders[-1])

    return ["manifest.json", folders[-1].name], folders[-2], undo


DAMAGES: dict[str, Callable[[list[Path], random.Random], Damage]] = {
    "bit": bit,
    "truncation": truncation,
    "longer": longer,
    "zeros": zeros,
    "missing": missing,
    "swapped": swapped,
    "exchanged": exchanged,
    "link": link,
    "extra": extra,
    "folder": folder,
}
