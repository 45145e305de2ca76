"""Draws docs/architecture.svg: the packages of progc on their floors, and which of them import which.

    python docs/architecture.py             writes the picture
    python docs/architecture.py --check     exit code 1 if the picture is not current
    python docs/architecture.py --counts    packages, arrows, files and lines

Everything is read: imports from the sources (also those inside functions), floors from the import-linter contract in
pyproject.toml, and what a package holds from the table in docs/architecture.md. An arrow that follows from others is
left out (transitive reduction): `runs` imports `ir`, and the picture shows it as a path. Arrows from far above to the
two lowest floors are left out, too. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

Edges = Mapping[str, frozenset[str]]


# --- what is drawn --------------------------------------------------------------------------------------------------


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of progc, by its name: `progc.passes.freeze` to passes/freeze.py."""
    found = {}
    for top in ("progc", "passes", "models"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if top == "progc" else ("progc", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str) -> set[str]:
    """Modules of progc that a file imports anywhere; `from progc import ir` counts as `progc.ir`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"progc.{alias.name}" for alias in node.names} if module == "progc" else {module}
    return {name for name in found if name.startswith("progc.")}


def arrows(files: Mapping[str, Path]) -> dict[str, frozenset[str]]:
    """Package to the packages it imports. The facade (progc/__init__.py and __main__.py) is not a package."""
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        if name in ("progc", "progc.__main__"):
            continue
        package = name.split(".")[1]
        targets = {target.split(".")[1] for target in imported(path.read_text(encoding="utf-8"))}
        found.setdefault(package, set()).update(targets - {package})
    return {package: frozenset(targets) for package, targets in found.items()}


def floors(text: str) -> list[list[str]]:
    """The packages of each floor, top floor first, from the text of pyproject.toml."""
    listed = re.search(r"^layers = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None, "pyproject.toml has no contract with layers"
    return [line.split(" | ") for line in re.findall(r'"([^"]+)"', listed[1])]


def holdings(text: str) -> dict[str, str]:
    """Package to what it holds, from the table of floors: `package` words; `package` words."""
    rows = re.findall(r"^\| \d+ \| (.*) \|$", text, re.MULTILINE)
    return {name: words.strip() for row in rows for name, words in re.findall(r"`(\w+)`:? ([^;`]+)", row)}


def reduced(edges: Edges) -> dict[str, list[str]]:
    """The arrows that do not follow from others."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in edges.get(waiting.pop(), frozenset()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    below = {name: reach(name) for name in edges}
    return {
        name: sorted(target for target in targets if not any(target in below[other] for other in targets - {target}))
        for name, targets in sorted(edges.items())
    }


# --- where it is drawn ----------------------------------------------------------------------------------------------

BOX, GAP, LANE = 178.0, 22.0, 16.0  # width of a box, space between boxes, space for an arrow that passes a floor
HEIGHT, PITCH = 44.0, 70.0  # of a box, from floor to floor
LEFT, TOP, EDGE = 52.0, 16.0, 16.0
SHARED = 2  # the lowest floors serve all others: only arrows from the floor above lead to them
CROSSING = 100.0  # an arrow goes so far sideways to avoid crossing another
STARTS, ROUNDS, SWEEPS = 16, 4, 60

Lane = tuple[str, str, int]  # from, to, floor: where an arrow passes a floor
Item = str | Lane


def routes(levels: Sequence[Sequence[str]], edges: Mapping[str, Sequence[str]]) -> list[list[Item]]:
    """Every arrow as the boxes and lanes it visits, from the top down."""
    floor = {name: number for number, row in enumerate(levels) for name in row}
    found: list[list[Item]] = []
    for start in (name for row in levels for name in row):
        for end in edges.get(start, ()):
            if floor[end] >= len(levels) - SHARED and floor[end] > floor[start] + 1:
                continue
            between: list[Item] = [(start, end, number) for number in range(floor[start] + 1, floor[end])]
            found.append([start, *between, end])
    return found


def links(paths: Iterable[Sequence[Item]]) -> list[tuple[Item, Item]]:
    """Neighbours on any path."""
    return [pair for path in paths for pair in zip(path, path[1:], strict=False)]


def crossings(above: Sequence[Item], below: Sequence[Item], pairs: Iterable[tuple[Item, Item]]) -> int:
    """How many arrows cross between two floors."""
    upper, lower = ({item: place for place, item in enumerate(row)} for row in (above, below))
    ends = sorted((upper[a], lower[b]) for a, b in pairs)
    return sum(a[0] != b[0] and a[1] > b[1] for place, a in enumerate(ends) for b in ends[place + 1 :])


def ordered(levels: Sequence[Sequence[str]], paths: Sequence[Sequence[Item]]) -> list[list[Item]]:
    """Boxes and lanes of every floor from left to right, with few crossings; the best of several starts."""
    lanes: list[list[Item]] = [[] for _ in levels]
    for item in (item for path in paths for item in path if not isinstance(item, str)):
        lanes[item[2]].append(item)
    floor = {item: number for number, row in enumerate(levels) for item in [*row, *lanes[number]]}
    between: list[list[tuple[Item, Item]]] = [[] for _ in levels]
    for a, b in links(paths):
        between[floor[a]].append((a, b))

    def around(rows: Sequence[Sequence[Item]], number: int) -> int:
        """Crossings above and below one floor."""
        gaps = [gap for gap in (number - 1, number) if 0 <= gap < len(rows) - 1]
        return sum(crossings(rows[gap], rows[gap + 1], between[gap]) for gap in gaps)

    found = []
    for start in range(STARTS):
        draw = random.Random(start)
        rows = [[*row, *lanes[number]] for number, row in enumerate(levels)]
        for row in rows if start else ():
            draw.shuffle(row)
        for _ in range(ROUNDS):
            for number in draw.sample(range(len(rows)), len(rows)):
                for trial in _orders(rows[number]):
                    changed = [*rows[:number], trial, *rows[number + 1 :]]
                    if around(changed, number) < around(rows, number):
                        rows = changed
        crossed = sum(around(rows, number) for number in range(0, len(rows), 2))
        found.append((crossed * CROSSING + bends(centres(rows, paths), paths), start, rows))
    return min(found)[2]


def _orders(row: Sequence[Item]) -> Iterable[list[Item]]:
    """Orders of a floor: all of a short one, else those with one item moved."""
    if len(row) <= 4:
        yield from map(list, permutations(row))
        return
    for item in row:
        rest = [other for other in row if other != item]
        yield from ([*rest[:place], item, *rest[place:]] for place in range(len(row)))


def bends(x: Mapping[Item, float], paths: Sequence[Sequence[Item]]) -> float:
    """How far arrows go sideways."""
    return sum(abs(x[a] - x[b]) for a, b in links(paths))


def half(item: Item) -> float:
    """Half the width that an item takes."""
    return (BOX + GAP) / 2 if isinstance(item, str) else LANE / 2


def spread(row: Sequence[Item], wanted: Sequence[float]) -> list[float]:
    """Centres as near to the wanted ones as the widths allow (least squares, pool adjacent violators)."""
    offsets = [0.0]
    for a, b in zip(row, row[1:], strict=False):
        offsets.append(offsets[-1] + half(a) + half(b))
    groups: list[tuple[float, int]] = []
    for value, offset in zip(wanted, offsets, strict=True):
        mean, count = value - offset, 1
        while groups and groups[-1][0] > mean:
            before, number = groups.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        groups.append((mean, count))
    means = [mean for mean, count in groups for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def centres(rows: Sequence[Sequence[Item]], paths: Sequence[Sequence[Item]]) -> dict[Item, float]:
    """The x of every item: each floor in turn moves towards what it is connected to; long arrows become straight."""
    near: dict[Item, list[Item]] = {item: [] for row in rows for item in row}
    for a, b in links(paths):
        weight = (1, 2, 8)[sum(not isinstance(item, str) for item in (a, b))]
        near[a] += [b] * weight
        near[b] += [a] * weight
    x = {item: value for row in rows for item, value in zip(row, spread(row, [0.0] * len(row)), strict=True)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = []
            for place, item in enumerate(row):
                beside = row[place - 1] if place else row[-1]  # where nothing leads stays beside its neighbour
                alone = x[beside] + (half(beside) + half(item)) * (1 if place else -1)
                values = sorted(x[other] for other in near[item]) or [alone]
                low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
                # Means move groups, medians then make lines straight.
                wanted.append(statistics.fmean(values) if sweep < SWEEPS // 2 else min(max(x[item], low), high))
            x.update(zip(row, spread(row, wanted), strict=True))
    left = min(x[item] - half(item) for item in x)
    return {item: round(value - left + LEFT + EDGE, 1) for item, value in x.items()}


# --- drawing --------------------------------------------------------------------------------------------------------

STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; fill: #24292f }
.name { font-family: "DejaVu Sans Mono", Menlo, monospace; font-size: 13px; font-weight: bold; text-anchor: middle }
.what { font-size: 9.5px; text-anchor: middle; fill: #57606a }
.floor { font-size: 12px; text-anchor: end; fill: #8c959f }
.box { fill: #fff; stroke: #57606a; stroke-width: 1.2 }
.arrow { fill: none; stroke: #0969da; stroke-width: 1.5; marker-end: url(#head) }
""".strip()


def drawn(levels: Sequence[Sequence[str]], edges: Edges, holds: Mapping[str, str]) -> str:
    """The picture as SVG. Same input, same bytes."""
    paths = routes(levels, reduced(edges))
    rows = ordered(levels, paths)
    x = centres(rows, paths)
    y = {item: TOP + PITCH * number for number, row in enumerate(rows) for item in row}
    width = max(x[item] + half(item) for item in x) + EDGE
    height = TOP + PITCH * len(rows) - (PITCH - HEIGHT) + TOP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="Packages of progc and their imports">',
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#0969da"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for number in range(len(rows)):
        top = TOP + PITCH * number
        lines.append(
            f'<rect x="{LEFT - 8:g}" y="{top - 7:g}" width="{width - LEFT:g}" height="{HEIGHT + 14:g}" rx="6" '
            'fill="#f6f8fa"/>'
        )
        lines.append(f'<text class="floor" x="{LEFT - 18:g}" y="{top + HEIGHT / 2 + 4:g}">{len(rows) - number}</text>')
    lines += [f'<path class="arrow" d="{curve(path, x, y, paths)}"/>' for path in paths]
    for name in (name for row in levels for name in row):
        left, top = x[name] - BOX / 2, y[name]
        lines.append(f'<rect class="box" x="{left:g}" y="{top:g}" width="{BOX:g}" height="{HEIGHT:g}" rx="5"/>')
        lines.append(f'<text class="name" x="{x[name]:g}" y="{top + 19:g}">{escape(name)}</text>')
        lines.append(f'<text class="what" x="{x[name]:g}" y="{top + 34:g}">{escape(holds[name])}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def curve(path: Sequence[Item], x: Mapping[Item, float], y: Mapping[Item, float], paths: Sequence[list[Item]]) -> str:
    """One arrow: straight down past the floors, bent between them."""

    def port(end: Item, ours: Item, others: Iterable[tuple[Item, Item]]) -> float:
        """Where an arrow meets a box: side by side in the order of where the arrows lead."""
        beside = sorted({other: None for other, _ in others}, key=lambda item: x[item])
        return x[end] + (beside.index(ours) - (len(beside) - 1) / 2) * min(26.0, (BOX - 30) / max(len(beside), 1))

    out = [(other[1], other[0]) for other in paths if other[0] == path[0]]
    into = [(other[-2], other[-1]) for other in paths if other[-1] == path[-1]]
    at = port(path[0], path[1], out)
    text = f"M{at:g} {y[path[0]] + HEIGHT:g}"
    for item in path[1:]:
        last = item == path[-1]
        to = port(item, path[-2], into) if last else x[item]
        start, stop = y[item] - PITCH + HEIGHT, y[item]
        middle = (start + stop) / 2
        text += f" C{at:g} {middle:g} {to:g} {middle:g} {to:g} {stop:g}"
        if not last:
            text += f" V{y[item] + HEIGHT:g}"
        at = to
    return text


def picture(root: Path = ROOT) -> str:
    """The picture of the sources under `root`."""
    levels = floors((root / "pyproject.toml").read_text(encoding="utf-8"))
    holds = holdings((root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    missing = [name for row in levels for name in row if name not in holds]
    assert not missing, f"the table of floors in docs/architecture.md does not say what {', '.join(missing)} hold"
    return drawn(levels, arrows(sources(root)), holds)


def counts(root: Path = ROOT) -> str:
    """Packages, arrows, arrows that lead up, files and lines, in one line."""
    files = sources(root)
    edges = arrows(files)
    levels = floors((root / "pyproject.toml").read_text(encoding="utf-8"))
    height = {name: len(levels) - number for number, row in enumerate(levels) for name in row}
    up = sum(height[target] >= height[name] for name, targets in edges.items() for target in targets)
    lengths = [path.read_text(encoding="utf-8").count("\n") for path in files.values()]
    return (
        f"{len(height)} packages on {len(levels)} floors, {sum(map(len, edges.values()))} arrows, "
        f"{up} of them not down; {len(lengths)} files, {sum(lengths):,} lines, "
        f"median {statistics.median(lengths):g}, longest {max(lengths)}"
    )


def main() -> int:
    """Writes or checks the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the picture is current")
    parser.add_argument("--counts", action="store_true", help="only print the counts")
    options = parser.parse_args()
    if options.counts:
        print(counts())
        return 0
    current = picture()
    if options.check:
        if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == current:
            return 0
        print("docs/architecture.svg is not current; run `python docs/architecture.py`", file=sys.stderr)
        return 1
    PICTURE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
