"""Checks a single period as a run by comparing its entry with its exit.

A single block has no next block that shows which input its exit continues. The residual path shows it: the exit is the
entry plus another value.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from progc.analysis.chains.canonical import Form, View, meta_key
from progc.analysis.chains.runs import Links, Run, RunPiece
from progc.ir.notation import meta_text
from progc.ir.operations import NORMS, op_name
from progc.ir.program import MODES, Mode

MISFIT = "changes width or stride"
_TRUNK = NORMS | set(
    "add relu gelu silu view reshape permute transpose contiguous flatten unflatten slice clone roll pad to type_as "
    "div".split()
)


def stretch(pieces: Sequence[RunPiece], links: Sequence[Links | str], start: int, stop: int) -> Run | str:
    """Returns the pieces `start .. stop - 1` as a run of one period, or the reason why they are not one."""
    first, last = pieces[start], pieces[stop - 1]
    heads: dict[Mode, tuple[tuple[int, ...], ...]] = {}
    tails: dict[Mode, tuple[int, ...]] = {}
    for mode in MODES:
        exits = [place for _, place in last.forms[mode].exits]
        if not exits:
            return "no value that it computes is read"
        pairs: list[tuple[int, int]] = []
        for place in exits:
            if place is None or place < 0:
                return "it returns one of its inputs unchanged"
            slot = _entry_of(first.forms[mode], last.forms[mode], place, len(exits) == 1)
            if slot is None:
                return _misfit(first.forms[mode], last.forms[mode].order[place], len(exits))
            pairs.append((slot, place))
        if len({slot for slot, _ in pairs}) < len(pairs):
            return "several of its exits continue the same entry"
        rows = [tuple(slot for slot, _ in pairs)]
        for j in range(start, stop - 1):
            step = links[j]
            if isinstance(step, str):
                return step
            rows.append(tuple(slot for slot, _ in step[mode].wires))
        if len({len(row) for row in rows}) > 1:
            return "the number of values between its blocks changes"
        heads[mode] = tuple(rows)
        tails[mode] = tuple(place for _, place in pairs)
    return Run(start, stop, stop - start, heads, tails)


def _candidates(first: Form, node: fx.Node) -> list[int]:
    meta = meta_key(node.meta.get("tensor"))
    return [k for k, slot in enumerate(first.slots) if slot.op == "call_function" and _meta(slot) == meta] or [
        k for k, slot in enumerate(first.slots) if slot.op == "placeholder" and _meta(slot) == meta
    ]


def _meta(node: fx.Node) -> object:
    return meta_key(node.meta.get("tensor"))


def _entry_of(first: Form, last: Form, place: int, alone: bool) -> int | None:
    """Returns the slot that an exit continues: by its residual path, or for a single exit by shape and distance."""
    node = last.order[place]
    slots = _candidates(first, node)
    if first is last:
        reached = [slot for slot in slots if residual(first, place, slot)]
        if len(reached) == 1:
            return reached[0]
        slots = reached or slots
    if not slots or not (alone or len(slots) == 1):
        return None
    graph_order = {found: k for k, found in enumerate(node.graph.nodes)}
    return max(slots, key=lambda slot: graph_order[first.slots[slot]])


def residual(form: Form, place: int, slot: int) -> bool:
    """Returns whether the value at `place` is the slot plus other values, through sums, norms and reshapes only."""
    goal, inside = form.slots[slot], set(form.nodes)
    stack: list[tuple[fx.Node, bool]] = [(form.order[place], False)]
    seen: set[tuple[fx.Node, bool]] = set()
    while stack:
        node, added = stack.pop()
        if node is goal and added:
            return True
        if (node, added) in seen or node not in inside:
            continue
        seen.add((node, added))
        name = op_name(node)
        tensors = [arg for arg in node.all_input_nodes if not View.is_size(arg)]
        if name == "add":
            stack += [(arg, added or len(tensors) > 1) for arg in tensors]
        elif name in _TRUNK or name.startswith(("dropout", "feature_dropout")) or name == "mul":
            stack += [(arg, added) for arg in tensors[:1] if arg.op != "get_attr"]
    return False


def _misfit(form: Form, exit_node: fx.Node, exits: int) -> str:
    entries = [slot for slot in form.slots if slot.op != "get_attr"]
    if not entries:
        return "it reads no computed value"
    before, after = meta_text(entries[0].meta.get("tensor")), meta_text(exit_node.meta.get("tensor"))
    if exits > 1:
        return f"it has {exits} exits, and `{exit_node.name}` {after} does not continue an entry"
    return f"{MISFIT}: entry {before}, exit {after}"


def nested_calls(view: View, form: Form) -> bool:
    """Returns whether a block reads a value computed after one of its exits, so that it is not a single step."""
    reads = [view.position[slot] for slot in form.slots if slot.op == "call_function"]
    writes = [view.position[node] for node, _ in form.exits]
    return bool(reads and writes and max(reads) > min(writes))


def odd_entry(view: View, form: Form, entry: fx.Node) -> str:
    """Returns why a single block is not a function of its entry; an empty string if it is."""
    inside = set(form.nodes)
    for user in entry.users:
        if user not in inside and not View.is_size(user):
            return f"its entry `{entry.name}` is also read outside it (a skip connection)"
    rivals = {
        slot for slot in form.slots if slot is not entry and slot.op == "call_function" and _rank(slot) == _rank(entry)
    }
    earliest = min((view.position[slot] for slot in rivals), default=len(view.nodes))
    stack, seen = [entry], {entry}
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg in rivals:
                return f"it reads `{arg.name}`, from which its entry `{entry.name}` was computed"
            if arg not in seen and view.position[arg] > earliest:
                seen.add(arg)
                stack.append(arg)
    return ""


def _rank(node: fx.Node) -> int:
    return len(getattr(node.meta.get("tensor"), "shape", ()))
