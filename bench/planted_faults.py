"""Do the tests notice mistakes? Sixty deliberate faults, planted one at a time, each in a copy of the repository.

    python bench/planted_faults.py                        # this tree, all tests of each fault's area
    python bench/planted_faults.py --marks 'not slow'     # the tests that `make test` runs
    python bench/planted_faults.py --repo ../other --only lift-rest chains-period

About an hour on one core. The faults and the tests of each area are in bench/planted_fault_list.py. A fault is found
by its code, not by its file, so that one list serves trees whose files were moved. The tests of every area run once
without a fault; tests that fail in this run are listed and left out. An interrupted run resumes where it stopped, as
long as the tree and the list are the same. Writes bench/results/planted_faults.json, or the file given.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import RESULTS, machine
from bench.planted_fault_areas import AREAS, Fault
from bench.planted_fault_list import FAULTS

ROOT = Path(__file__).resolve().parents[1]
CODE = ("progc", "passes", "models")
_FAILED = re.compile(r"^(FAILED|ERROR) (tests/.*?)(?: - .*)?$", re.MULTILINE)
_CHECK = """
import progc, progc.passes, progc.models
for module in (progc, progc.passes, progc.models):
    print(module.__file__)
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What one run of pytest gave.

    Attributes:
        outcome: `passed`, `failed`, `timeout`, or `error` (pytest itself did not work).
        seconds: from start to end.
        failed: identifiers of tests that failed, in order.
        message: of the first one, or the end of the output if there is none.
        cases: seconds of every test by its file, where they were asked for.
    """

    outcome: str
    seconds: float
    failed: tuple[str, ...]
    message: str
    cases: dict[str, list[float]]


class Copy:
    """A copy of a repository, in which faults are planted, with passes/ and models/ inside the package."""

    def __init__(self, repo: Path, folder: Path, python: str, marks: str, limit: float) -> None:
        self.root, self.python, self.marks, self.limit = folder / "repo", python, marks, limit
        for name in tracked(repo):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, target)
        # Inside the package and not beside it: what tests start in the root finds that before anything installed, too.
        for name in ("passes", "models"):
            (self.root / "progc" / name).symlink_to(Path("..", name))
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
            "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._stamps = itertools.count(int(time.time()) + 10, 10)
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._check()

    def _check(self) -> None:
        """That the copy is what is tested, and not a package that is installed: from its root and from elsewhere."""
        for place in (self.root, self.root.parent):
            done = subprocess.run(
                [self.python, "-c", _CHECK], cwd=place, env=self.environment, capture_output=True, text=True
            )
            paths = [Path(line).resolve() for line in done.stdout.splitlines()]
            if len(paths) != 3 or any(not path.is_relative_to(self.root.resolve()) for path in paths):
                raise SystemExit(f"{self.python} does not import the copy: {done.stdout}{done.stderr[-500:]}")

    @contextlib.contextmanager
    def planted(self, fault: Fault) -> Iterator[Path]:
        """The fault is in the copy inside."""
        path = located(self.root, fault)
        text = path.read_text(encoding="utf-8")
        try:
            self._write(path, text.replace(fault.old, fault.new))
            yield path.relative_to(self.root)
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        """Writes a file with a time that it never had: Python tells by time and size whether bytecode is of it."""
        path.write_text(text, encoding="utf-8")
        stamp = next(self._stamps)
        os.utime(path, (stamp, stamp))

    def run(self, tests: Sequence[str], *, stop: bool, without: Iterable[str] = ()) -> Ran:
        """Runs test files.

        Args:
            stop: at the first failure.
            without: identifiers of tests that are left out.
        """
        report = self.root.parent / "report.xml"
        report.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-x"] * stop + (["-m", self.marks] if self.marks else [])
        command += [part for name in without for part in ("--deselect", name)]
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [*command, *tests], cwd=self.root, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, text=True,
            )  # fmt: skip
            try:
                code: int | None = self._process.wait(self.limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self._kill()
                self._process.wait()
            output.seek(0)
            text = output.read()
        if self._stopped:
            raise SystemExit("stopped")
        seconds = round(time.monotonic() - start, 1)
        found = _FAILED.findall(text)
        outcome = {None: "timeout", 0: "passed", 1: "failed"}.get(code, "error")
        if code == 2 and any(kind == "ERROR" for kind, _ in found):
            outcome = "failed"  # a test file cannot even be imported
        failed = tuple(dict.fromkeys(name for _, name in found))
        cases, said = _reported(report, tests)
        message = said or (text.strip()[-300:] if outcome != "passed" else "")
        return Ran(outcome, seconds, failed, message, cases)

    def stop(self) -> None:
        """Ends what runs now; its result is not kept."""
        self._stopped = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # the tests' own children too
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)


def tracked(repo: Path) -> list[str]:
    """The files of a repository that git knows and that are there."""
    done = subprocess.run(["git", "-C", str(repo), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in sorted(set(done.stdout.split("\0")) - {""}) if (repo / name).is_file()]


def located(root: Path, fault: Fault) -> Path:
    """The file that holds the fault's code, which has to be there once."""
    given = root / fault.file
    if given.is_file() and given.read_text(encoding="utf-8").count(fault.old) == 1:
        return given
    paths = [path for folder in CODE for path in sorted((root / folder).rglob("*.py"))]
    found = {path: count for path in paths if (count := path.read_text(encoding="utf-8").count(fault.old))}
    if sum(found.values()) != 1:
        places = ", ".join(f"{path.relative_to(root)} ({count})" for path, count in found.items())
        raise SystemExit(f"fault {fault.name}: its code is to be there once, found: {places or 'nowhere'}")
    return next(iter(found))


def matching(root: Path, patterns: Iterable[str]) -> list[str]:
    """Test files below tests/ whose folders or names end in one of the patterns, in the order of these."""
    files = sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))
    found: dict[str, None] = {}
    for pattern in patterns:
        ending = "/" + pattern.removeprefix("!") + ("" if pattern.endswith(".py") else "/")
        own = [name for name in files if (name.endswith(ending) if pattern.endswith(".py") else ending in name)]
        found = {name: None for name in found if name not in own} if pattern[0] == "!" else found | dict.fromkeys(own)
    return list(found)


def fingerprint(repo: Path) -> str:
    """Of the contents of the code and its tests."""
    sha = hashlib.sha256()
    for name in tracked(repo):
        if name.split("/")[0] in (*CODE, "tests", "pyproject.toml"):
            sha.update(name.encode() + b"\0" + hashlib.sha256((repo / name).read_bytes()).digest())
    return sha.hexdigest()


def _reported(report: Path, tests: Sequence[str]) -> tuple[dict[str, list[float]], str]:
    """Seconds of each test that ran, by file; and the message of the first that failed."""
    try:
        tree = xml.etree.ElementTree.parse(report)
    except (OSError, xml.etree.ElementTree.ParseError):
        return {}, ""
    modules = {name.removesuffix(".py").replace("/", "."): name for name in tests}
    found: dict[str, list[float]] = {}
    messages = []
    for case in tree.iter("testcase"):
        module = case.get("classname", "")
        while module and module not in modules:  # a class inside of it
            module = module.rpartition(".")[0]
        if module:
            found.setdefault(modules[module], []).append(float(case.get("time", 0)))
        messages += [item.get("message", "") for item in case if item.tag in ("failure", "error")]
    return found, " ".join(messages[0].split())[:300] if messages else ""


class Results:
    """Rows in a file that is written whole after each of them; old ones of the same tree are kept."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, dict(facts)
        self.machine = machine()
        self.areas: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
        if known and all(known.get(key) == value for key, value in self.facts.items()):
            self.areas, self.faults = known["areas"], {row["fault"]: row for row in known["faults"]}

    def put(self, table: dict[str, dict[str, Any]], key: str, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        with self._lock:
            table[key] = row
            order = [fault.name for fault in FAULTS]
            rows = sorted(self.faults.values(), key=lambda own: order.index(own["fault"]))
            results = {**self.facts, "areas": self.areas, "faults": rows}
            text = json.dumps({"machine": self.machine, "results": results}, indent=1) + "\n"
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def unfaulted(copy: Copy, area: str) -> dict[str, Any]:
    """What the tests of an area do without a fault: a row of results, with the files in the order of their seconds."""
    tests = matching(copy.root, AREAS[area])
    if not tests:
        raise SystemExit(f"area {area}: no test file matches {', '.join(AREAS[area])}")
    ran = copy.run(tests, stop=False)
    if ran.outcome not in ("passed", "failed") or not ran.cases:
        raise SystemExit(f"area {area}: the tests do not run without a fault ({ran.outcome}): {ran.message}")
    unmatched = [pattern for pattern in AREAS[area] if not matching(copy.root, [pattern.removeprefix("!")])]
    order = sorted(tests, key=lambda name: sum(ran.cases.get(name, [])))
    return {
        "tests": sum(map(len, ran.cases.values())), "seconds": ran.seconds, "failed": list(ran.failed),
        "files": {name: round(sum(ran.cases.get(name, [])), 1) for name in order}, "unmatched": unmatched,
        "digest": _digest(tests),
    }  # fmt: skip


def tried(copy: Copy, fault: Fault, area: Mapping[str, Any]) -> dict[str, Any]:
    """What the tests of its area do with a fault: a row of results."""
    first = [name for name in matching(copy.root, fault.first) if name in area["files"]]
    tests = list(dict.fromkeys([*first, *area["files"]]))
    tests = [name for name in tests if area["files"][name] or name in first]  # where marks leave out all of a file
    with copy.planted(fault) as path:
        ran = copy.run(tests, stop=True, without=area["failed"])
    outcome = {"failed": "found", "passed": "not found"}.get(ran.outcome, ran.outcome)
    return {
        "fault": fault.name, "area": fault.area, "file": path.as_posix(), "wrong": fault.wrong, "outcome": outcome,
        "seconds": ran.seconds, "test": ran.failed[0] if ran.failed else None, "message": ran.message,
        "digest": _digest(fault.old, fault.new, area["digest"], sorted(area["failed"])),
    }  # fmt: skip


def chosen(only: Sequence[str]) -> list[Fault]:
    """The faults with these names, or of areas with these names; all if none is given."""
    names = {fault.name for fault in FAULTS}
    unknown = [name for name in only if name not in names and name not in AREAS]
    if unknown:
        raise SystemExit(f"no fault or area is called {unknown[0]}; there are {', '.join([*AREAS, *sorted(names)])}")
    return [fault for fault in FAULTS if not only or fault.name in only or fault.area in only]


def run(faults: Sequence[Fault], copies: Sequence[Copy], results: Results) -> None:
    """Runs the tests of each area and then its faults, where they are not known yet; as many at a time as copies."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def one_area(area: str) -> None:
        known = results.areas.get(area)
        if known is not None and known["digest"] == _digest(matching(copies[0].root, AREAS[area])):
            return
        copy = free.get()
        try:
            row = unfaulted(copy, area)
        finally:
            free.put(copy)
        results.put(results.areas, area, row)
        print(f"{area}: {row['tests']} tests, {row['seconds']:.0f} s without a fault", flush=True)
        for name in row["failed"]:
            print(f"{area}: fails without a fault and is left out: {name}", flush=True)

    def one_fault(fault: Fault) -> None:
        area, known = results.areas[fault.area], results.faults.get(fault.name)
        digest = _digest(fault.old, fault.new, area["digest"], sorted(area["failed"]))
        if known is not None and known["digest"] == digest and known["outcome"] in ("found", "not found"):
            return
        copy = free.get()
        try:
            row = tried(copy, fault, area)
        finally:
            free.put(copy)
        results.put(results.faults, fault.name, row)
        print(f"{fault.name}: {row['outcome']}, {row['seconds']:.0f} s, {row['test'] or '-'}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
        try:
            for area in dict.fromkeys(fault.area for fault in faults):
                pool.submit(one_area, area).result()
                list(pool.map(one_fault, [fault for fault in faults if fault.area == area]))
        except BaseException:  # interrupted, or broken: no process is left running
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            raise


def table(rows: Iterable[Mapping[str, Any]], areas: Mapping[str, Mapping[str, Any]]) -> str:
    """Areas, faults and how many of them were found."""
    outcomes: dict[str, collections.Counter[str]] = {}
    for row in rows:
        outcomes.setdefault(row["area"], collections.Counter())[row["outcome"]] += 1
    lines = [("area", "faults", "found", "tests", "seconds")]
    for area, count in outcomes.items():
        own = areas[area]
        lines.append((area, str(count.total()), str(count["found"]), str(own["tests"]), f"{own['seconds']:.0f}"))
    total = sum(outcomes.values(), collections.Counter())
    lines.append(("all", str(total.total()), str(total["found"]), "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=ROOT, help="repository of which copies are made")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs the tests")
    parser.add_argument("--marks", default="", help="as for pytest -m; empty: all tests")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="faults or areas")
    parser.add_argument("--out", type=Path, default=RESULTS / "planted_faults.json")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at a time")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for the tests of one area")
    parser.add_argument("--list", action="store_true", help="say where the faults are in the tree, and run nothing")
    arguments = parser.parse_args()
    faults, repo = chosen(arguments.only), arguments.repo.resolve()
    where = {fault.name: located(repo, fault) for fault in FAULTS}  # says at once which code is gone
    if arguments.list:
        for fault in faults:
            print(f"{fault.name}  {where[fault.name].relative_to(repo)}  {fault.wrong}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    results = Results(arguments.out, {"tree": fingerprint(repo), "marks": arguments.marks})
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        made = [
            Copy(repo, Path(folder) / str(number), arguments.python, arguments.marks, arguments.timeout)
            for number in range(max(arguments.jobs, 1))
        ]
        run(faults, made, results)
    rows = [results.faults[fault.name] for fault in faults]
    for row in rows:
        if row["outcome"] != "found":
            print(f"{row['outcome']}: {row['fault']}: {row['wrong']}")
    print(table(rows, results.areas))
    print("written:", arguments.out)


if __name__ == "__main__":
    main()
