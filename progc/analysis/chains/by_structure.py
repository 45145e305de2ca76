"""Finds chains by structure, for graphs without a usable module stack.

Regions of repeated operations are candidates. The numbers in parameter names determine where one block ends and the
next begins: between two parameters with different numbers, where the fewest values cross. The same check of isomorphism
and connections as for modules decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.chains.assemble import blocks_of, carried_of, differences, shared_of
from progc.analysis.chains.canonical import View, canonical_form
from progc.analysis.chains.closing import residual
from progc.analysis.chains.filling import filled_blocks, place_unread, train_nodes
from progc.analysis.chains.names import Cut, common_stem, numbered_cut, own_names
from progc.analysis.chains.repeats import RepeatedRegion, label, live_counts, regions, sequence
from progc.analysis.chains.runs import Links, Run, RunPiece, find_runs, link
from progc.analysis.chains.table import Chain, Refused
from progc.ir.program import MODES, Mode

MAX_ATTEMPTS = 48


def chains_by_structure(
    views: Mapping[Mode, View], covered: set[str], told: tuple[str, ...] = ()
) -> tuple[list[Chain], list[Refused]]:
    """Finds chains among the nodes that are not `covered`.

    Args:
        views: both graphs.
        covered: names of eval nodes that are already in a chain.
        told: prefixes of tensors whose modules were already refused with a reason; they get no second reason.
    """
    view = views["eval"]
    nodes = sequence(view, {node for node in view.nodes if node.name in covered})
    labels = [None if node is None else label(view, node) for node in nodes]
    live = live_counts(view, nodes)
    mapping: dict[fx.Node, fx.Node] | None = None
    chains: list[Chain] = []
    refused: list[Refused] = []
    taken: list[tuple[int, int]] = []
    attempts = 0
    for whole in regions(labels):
        region = _clipped(whole, taken)
        if region is None or not any(own_names(nodes[k]) for k in range(region.start, region.start + region.period)):
            continue
        attempts += 1
        if attempts > MAX_ATTEMPTS:
            break
        cut = numbered_cut(nodes, labels, live, region)
        if isinstance(cut, str):
            known = [name for k in range(region.start, region.stop) for name in own_names(nodes[k])]
            if not known[0].startswith(told) and _repeats_feed(view, nodes, live, region):
                taken.append((region.start, region.stop))
                refused.append(Refused(f"{region.length // region.period} repeats from `{_name(nodes, region)}`", cut))
            continue
        if mapping is None:
            mapping = train_nodes(views)
        pieces = _pieces(views, nodes, cut, mapping)
        if pieces is None:
            continue
        links: list[Links | str] = [link(one, two) for one, two in itertools.pairwise(pieces)]
        runs = [run for run in find_runs(pieces, links) if _believable(pieces[run.start], run)]
        reasons = [step for step in links if isinstance(step, str) and "also read" in step]
        if not runs and reasons:
            taken.append((region.start, region.stop))
            if not pieces[0].tensors[0].startswith(told):
                refused.append(Refused(f"{pieces[0].label} to {pieces[-1].label}", reasons[0]))
        for run in runs:
            members = pieces[run.start : run.stop]
            taken.append((cut.spans[run.start][0], cut.spans[run.stop - 1][1]))
            clash = _clash(view, members)
            if clash:
                refused.append(Refused(f"{members[0].label} to {members[-1].label}", clash))
            else:
                chains.append(_chain(members, run))
    return chains, refused


def _clipped(region: RepeatedRegion, taken: Sequence[tuple[int, int]]) -> RepeatedRegion | None:
    """Returns the region without decided parts at its ends; None if less than two repeats are left."""
    start, stop = region.start, region.stop
    for low, high in taken:
        if low <= start < high:
            start = high
        if low < stop <= high:
            stop = low
        if start <= low and high <= stop and start < stop:
            return None
    return RepeatedRegion(start, stop, region.period) if stop - start >= 2 * region.period else None


def _name(nodes: Sequence[fx.Node | None], region: RepeatedRegion) -> str:
    node = nodes[region.start]
    assert node is not None
    return node.name


def _pieces(
    views: Mapping[Mode, View], nodes: Sequence[fx.Node | None], cut: Cut, mapping: Mapping[fx.Node, fx.Node]
) -> list[RunPiece] | None:
    """Returns blocks with their forms; None if a node has no counterpart in the train graph."""
    stem = common_stem(pattern for names in cut.names for pattern in names.values())
    members: dict[Mode, list[list[fx.Node]]] = {mode: [] for mode in MODES}
    for span in cut.spans:
        block = [node for node in nodes[span[0] : span[1]] if node is not None]
        if any(node not in mapping for node in block):
            return None
        members["eval"].append(block)
        members["train"].append([mapping[node] for node in block])
    pieces: list[RunPiece] = []
    filled = {mode: filled_blocks(views[mode], members[mode]) for mode in MODES}
    place_unread(views["train"], filled["train"], cut.names)
    for b, (names, number) in enumerate(zip(cut.names, cut.numbers, strict=True)):
        known = dict(names)
        for mode in MODES:  # counters and other tensors that only the train graph reads
            for node in filled[mode][b]:
                for name in own_names(node):
                    pattern = _like(name, number, known)
                    if pattern is not None:
                        known[name] = pattern
        forms = {mode: canonical_form(views[mode], filled[mode][b], known.get) for mode in MODES}
        program = views["eval"].program
        aliases = {alias: known[name] for alias, name in program.tied.items() if name in known}
        if aliases:
            return None
        owned = tuple(name for name in program.tensors if name in known)
        pieces.append(
            RunPiece(
                stem.replace("#", str(number)).rstrip("._"),
                number,
                "",
                owned,
                tuple(known[name] for name in owned),
                forms,
            )
        )
    return pieces


def _like(name: str, number: int, known: Mapping[str, str]) -> str | None:
    """Returns the pattern of a tensor that only the train graph reads, from a known pattern with the same stem."""
    if name in known:
        return known[name]
    for pattern in known.values():
        stem = pattern[: pattern.index("#") + 1]
        start = stem.replace("#", str(number))
        if name.startswith(start) and not name[len(start) : len(start) + 1].isdigit():
            return stem + name[len(start) :]
    return None


def _repeats_feed(view: View, nodes: Sequence[fx.Node | None], live: Sequence[int], region: RepeatedRegion) -> bool:
    """Returns whether each repeat reads only the one before it, so that a region with bad names is reported."""
    best = min(range(region.start, region.start + region.period), key=lambda c: (live[c + region.period], c))
    repeats = (region.stop - best) // region.period
    if repeats < 2:
        return False
    groups = []
    for i in range(repeats):
        found = [node for node in nodes[best + i * region.period : best + (i + 1) * region.period] if node is not None]
        names = dict.fromkeys(name for node in found for name in own_names(node))
        if not names:
            return False
        local = {name: f"part {k}" for k, name in enumerate(names)}
        form = canonical_form(view, filled_blocks(view, [found])[0], local.get)
        groups.append(RunPiece(str(i), i, "", (), (), dict.fromkeys(MODES, form)))
    runs = find_runs(groups, [link(one, two) for one, two in itertools.pairwise(groups)])
    return any(_believable(groups[run.start], run) for run in runs)


def _believable(piece: RunPiece, run: Run) -> bool:
    """Returns whether repeats are blocks and not just layers: one forward computes them, or they are residual."""
    form = piece.forms["eval"]
    paths = set()
    for node in form.order:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        paths.add(str(stack[-1][0]) if stack else "")
    pairs = zip(run.tails["eval"], run.heads["eval"][0], strict=True)
    return len(paths) == 1 or (run.period == 1 and all(residual(form, place, slot) for place, slot in pairs))


def _clash(view: View, members: Sequence[RunPiece]) -> str:
    """Returns a reason if another tensor already has a name that the next block would need, else an empty string."""
    after = members[-1].index + 1
    for pattern in members[-1].patterns:
        name = pattern.replace("#", str(after))
        if name in view.program.tensors:
            return f"the next block would need the name `{name}`, which another tensor already has"
    return ""


def _chain(members: Sequence[RunPiece], run: Run) -> Chain:
    patterns = list(dict.fromkeys(pattern for piece in members for pattern in piece.patterns))
    stem = common_stem(patterns)
    return Chain(
        name=stem.removesuffix(".").removesuffix("#").removesuffix(".") if stem.endswith(("#.", ".#")) else stem,
        kind="residual",
        period=run.period,
        blocks=blocks_of(members),
        siblings=len(members),
        pattern=stem,
        differences=differences(members, run.period),
        carried=carried_of(members, run),
        shared=shared_of(members, run),
        source="structure",
    )
