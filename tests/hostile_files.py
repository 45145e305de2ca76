"""Files made to do harm, and what every command that reads makes of them; used by a test and by bench/hostile.py.

A case is a file (or folder) and the command that is pointed at it. Each must end soon, with one line that says what is
wrong, having run nothing, written nothing and followed nothing out of the folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from progc.cli import main
from tests.command import NET

SECONDS = 60
"""After which a command counts as one that hangs."""
Make = Callable[[Path], None]
Arguments = Callable[[Path], list[str]]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "run")


MARKER = "pwned"


def bomb(path: Path) -> bytes:
    """A pickle that would leave `MARKER` in the folder above that of the file."""
    return pickle.dumps({"state_dict": Bomb(path.parent.parent / MARKER)})


def torch_bomb(path: Path) -> None:
    import torch

    with path.open("wb") as file:  # a name that begins with a dot would be refused by torch itself
        torch.save({"state_dict": Bomb(path.parent.parent / MARKER)}, file)


def holding(content: bytes | str) -> Make:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: void(path.write_bytes(data))


def void(_: Any) -> None:
    return None


def sparse(path: Path) -> None:
    """64 GiB that take no room on the disk."""
    with path.open("wb") as file:
        file.write(b'{"a": [')
        file.truncate(1 << 36)


def header(value: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


PLACES: dict[str, Make] = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "sparse": sparse,
    "pickle": lambda path: void(path.write_bytes(bomb(path))),
    "torch pickle": torch_bomb,
}
"""Things of any name."""

TEXTS: dict[str, Make] = {
    "deep list": holding("[" * 100_000),
    "deep object": holding('{"a":' * 100_000),
    "deep closed": holding('{"a":' * 500 + "1" + "}" * 500),
    "digits": holding('{"version": ' + "9" * 100_000 + "}"),
    "large": holding('{"version": 1e999, "format_version": 1e999}'),
    "not a number": holding('{"version": NaN}'),
    "binary": holding(b"\xff\xfe\x00\x01" * 100),
    "nul": holding(b"\x00" * 100),
    "empty": holding(""),
    "list": holding("[]"),
    "escape": holding('{"\\u001b[31mred\\u0007": "\\u001b[2J\\n"}'),
}
CONFIGS: dict[str, Make] = {
    "x.yaml objects": holding("source: !!python/object/apply:os.system ['touch pwned']\n"),
    "x.yaml new": holding("source: !!python/object/new:os.system ['touch pwned']\n"),
    "x.yaml name": holding("source: !!python/name:os.system\n"),
    "x.yaml aliases": holding("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nsource: *c\n"),
    "x.yaml anchors": holding("&a source: [&b [*a]]\n"),
    "x.yaml itself": holding("source: &a [*a]\n"),
    "x.yaml deep": holding("{a: " * 50_000),
    "x.yaml lists": holding("- " * 100_000),
    "x.yaml keys": holding("? " * 100_000),
    "x.yaml many": holding("".join(f"k{k}: 1\n" for k in range(60_000))),
    "x.yaml digits": holding("epochs: 0x" + "9" * 100_000),
    "x.yaml infinity": holding("source: x.py\nepochs: .inf\nout: run\n"),
    "x.yaml date": holding("source: 2001-01-01\n"),
    "x.yaml binary": holding("source: !!binary aGVsbG8=\n"),
    "x.yaml set": holding("source: !!set {a, b}\n"),
    "x.yaml documents": holding("source: a\n---\nsource: b\n"),
    "x.yaml keys of lists": holding("[a, b]: 1\n"),
    "x.toml deep": holding("a = " + "[" * 100_000),
    "x.toml tables": holding("[" + "a." * 100_000 + "b]"),
    "x.toml less deep": holding("[" + "a." * 900 + "b]"),
    "x.toml inline": holding("a = " + "{a = " * 10_000),
    "x.toml digits": holding("epochs = " + "9" * 100_000),
    "x.toml infinity": holding('source = "x.py"\n[train]\nlr = inf\nbatch = nan\n'),
    "x.toml escape": holding('"\\u001b[31m" = 1\n"a\\nb" = 2\n'),
    "x.toml lengths": holding('source = "x.py"\nepochs = 9223372036854775807\nout = "\\u0000"\n'),
    "x.json twice": holding('{"source": "a.py", "source": ["b"]}'),
}
HEADERS: dict[str, Make] = {
    "huge": holding(header({}, length=2**64 - 1)),
    "longer": holding(header({}, length=1 << 20)),
    "deep": holding(header(b"[" * 100_000)),
    "deep closed": holding(header(b'{"a":' * 5000 + b"1" + b"}" * 5000)),
    "list": holding(header([1])),
    "overlap": holding(header({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6))),
    "twice": holding(header(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4))),
    "negative": holding(header({"a": entry(-4, 0)}, bytes(4))),
    "beyond": holding(header({"a": entry(0, 2**40, (2**38,))}, bytes(4))),
    "huge shape": holding(header({"a": entry(0, 0, (0, 2**62, 2**62))})),
    "huger shape": holding(header({"a": entry(0, 4, (10**400,))}, bytes(4))),
    "infinite shape": holding(header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4))),
    "dtype": holding(header({"a": entry(0, 4, dtype=["F32"])}, bytes(4))),
    "digits": holding(header(b'{"a":' + b"9" * 10_000 + b"}")),
    "escape": holding(header({"\x1b[31m\n": entry(0, 9)}, bytes(4))),
}


def net(folder: Path) -> str:
    path = folder / "net.py"
    if not path.exists():
        path.write_text(NET)
    return f"{path}:big"


def output_folder(folder: Path) -> Path:
    """What `--out` writes, in its smallest form."""
    made = folder / "out"
    made.mkdir(exist_ok=True)
    for name, content in (("report.json", b"{}"), ("model.safetensors", header({"a": entry(0, 4)}, bytes(4)))):
        if not os.path.lexists(made / name):
            (made / name).write_bytes(content)
    return made


def in_output(name: str) -> tuple[str, Callable[[Path], Path]]:
    return name, lambda folder: output_folder(folder) / name


WEIGHTS: dict[str, Arguments] = {
    "grow --weights": lambda file: ["grow", net(file.parent), "--to", "depth*2", "--weights", str(file)],
    "grow --ema": lambda file: ["grow", net(file.parent), "--to", "depth*2", "--ema", str(file)],
    "apply --weights": lambda file: [
        "apply", net(file.parent), "--pipeline", "grow-depth{to=*2}", "--weights", str(file)
    ],
    "diff --weights": lambda file: [
        "diff", net(file.parent), "--pipeline", "grow-depth{to=*2}", "--weights", str(file)
    ],
}  # fmt: skip
CONFIG: dict[str, Arguments] = {"train": lambda file: ["train", str(file), "--dry-run"]}
PLAN: dict[str, Arguments] = {
    "inspect": lambda file: ["inspect", str(file)],
    "inspect --json": lambda file: ["inspect", str(file), "--stage", "0", "--json"],
    "train --plan": lambda file: ["train", net(file.parent), "--plan", str(file), "--epochs", "2", "--dry-run"],
}
FOLDER: dict[str, Arguments] = {
    "inspect": lambda file: ["inspect", str(file.parent)],
    "diff": lambda file: ["diff", str(file.parent), str(file.parent)],
}
SOURCES: dict[str, Arguments] = {
    "inspect transformers": lambda file: ["inspect", f"transformers:{file}"],
    "grow diffusers": lambda file: ["grow", f"diffusers:{file.parent}", "--to", "depth*2"],
}
PYTHON: dict[str, Arguments] = {
    "inspect": lambda file: ["inspect", str(file)],
    "train --data": lambda file: ["train", net(file.parent), "--data", str(file), "--epochs", "2", "--dry-run"],
}
METRICS: dict[str, Arguments] = {"plot": lambda file: ["plot", str(file.parent)]}
# A command that reads files belongs into one of these tables.

Case = tuple[str, str, Make, Arguments]
"""Path below a folder, name, what lies there, what is run."""


def cases() -> Iterator[Case]:
    """All of them but those of checkpoints and runs (their tests have them)."""
    for kind, make in {**PLACES, **TEXTS}.items():
        yield from (("x.json", f"plan {kind}: {name}", make, run) for name, run in PLAN.items())
        yield from (("x.json", f"config.json {kind}: {name}", make, run) for name, run in CONFIG.items())
        yield from (("metrics.jsonl", f"metrics {kind}: {name}", make, run) for name, run in METRICS.items())
        yield from (("config.json", f"model config {kind}: {name}", make, run) for name, run in SOURCES.items())
        yield from (
            (f"out/{file}", f"{file} {kind}: {name}", make, run)
            for file in ("report.json", "model.safetensors", "plan.json")
            for name, run in FOLDER.items()
            if not (file == "report.json" and kind == "escape")
        )
    for kind, make in PLACES.items():
        for file in ("x.yaml", "x.toml"):
            yield from ((file, f"{file} {kind}: {name}", make, run) for name, run in CONFIG.items())
        for file in ("x.pt", "x.safetensors", "x.bin"):
            yield from ((file, f"{file} {kind}: {name}", make, run) for name, run in WEIGHTS.items())
        yield from (("x.py", f"x.py {kind}: {name}", make, run) for name, run in PYTHON.items())
    for kind, make in CONFIGS.items():
        yield from ((kind.split()[0], f"config {kind}: {name}", make, run) for name, run in CONFIG.items())
    for kind, make in HEADERS.items():
        yield from (("x.safetensors", f"header {kind}: {name}", make, run) for name, run in WEIGHTS.items())
        yield from (("out/model.safetensors", f"header {kind}: {name}", make, run) for name, run in FOLDER.items())


HARMLESS = ("plan.json escape", "plan.json pipe", "plan.json device", "plan.json link", "header twice: ")
HARMLESS += tuple(f"header {kind}: inspect" for kind in ("overlap", "negative", "beyond", "huge shape", "huger shape"))
HARMLESS += tuple(f"header {kind}: inspect" for kind in ("infinite shape", "dtype", "escape"))
HARMLESS += ("header overlap: diff", "header huge shape: diff")
"""Of which a command reads no more than what is well formed, and shows that."""


def trial(case: Case, folder: Path) -> str | None:
    """Runs a case in an empty folder; what went wrong, None if nothing did."""
    place, name, make, arguments = case
    inner = folder / "in"
    (inner / place).parent.mkdir(parents=True)
    if place.startswith("out/"):
        output_folder(inner)
        (inner / place).unlink(missing_ok=True)
    net(inner)
    make(inner / place)
    found = watched(arguments(inner / place), folder)
    shutil.rmtree(folder)
    if found is None or (name.startswith(HARMLESS) and found == "exit code 0"):
        return None
    return f"{name}: {found}"


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        if "__pycache__" not in path.parts:
            status = path.lstat()
            found[str(path.relative_to(folder))] = (status.st_mode, status.st_size)
    return found


def watched(arguments: list[str], folder: Path) -> str | None:
    """Runs a command in this process; what is wrong with how it ended, None if it refused its input in one line."""
    before = listing(folder)
    out, err = io.StringIO(), io.StringIO()
    old = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except Late:
        return f"it did not end within {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    text = out.getvalue() + err.getvalue()
    if (folder / MARKER).exists() or listing(folder) != before or Path(MARKER).exists():
        return "something was written"
    if "Traceback" in text or "internal error" in text:
        return text[-300:]
    if any(not c.isprintable() and c not in "\n\t" for c in text):
        return f"control characters in {text[:200]!r}"
    if code not in (1, 2):
        return f"exit code {code}"
    lines = err.getvalue().splitlines()
    if len(lines) != 1 or not lines[0].startswith("progc: error: ") or len(lines[0]) > 1500:
        return f"{len(lines)} lines: {text[:300]!r}"
    return None


class Late(BaseException):
    """Not an Exception, so that nothing handles it."""


def _late(*_: Any) -> None:
    raise Late
