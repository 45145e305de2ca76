"""A single period as a run: closed by comparing its entry with its exit.

With one block there is no next one to show which of its inputs its exit continues. The residual path shows it: the
exit is the entry plus something.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from progc.analysis.chains.canonical import Form, View, meta_key, op_name
from progc.analysis.chains.runs import Links, Run, RunPiece
from progc.ir.notation import meta_text
from progc.ir.program import MODES, Mode

MISFIT = "changes width or stride"
_TRUNK = frozenset(
    "add add_ relu relu_ gelu gelu_ silu silu_ layer_norm batch_norm rms_norm group_norm view reshape permute transpose"
    " contiguous flatten unflatten slice clone roll pad to type_as div div_".split()
)


def stretch(pieces: Sequence[RunPiece], links: Sequence[Links | str], start: int, stop: int) -> Run | str:
    """The pieces `start .. stop - 1` as a run of one period, closed by shape, or why they cannot be one."""
    first, last = pieces[start], pieces[stop - 1]
    heads: dict[Mode, tuple[tuple[int, ...], ...]] = {}
    tails: dict[Mode, tuple[int, ...]] = {}
    for mode in MODES:
        exits = [place for _, place in last.forms[mode].exits]
        if not exits:
            return "nothing that it computes is read"
        pairs: list[tuple[int, int]] = []
        for place in exits:
            if place is None or place < 0:
                return "it passes a value through"
            slot = _entry_of(first.forms[mode], last.forms[mode], place, len(exits) == 1)
            if slot is None:
                return _misfit(first.forms[mode], last.forms[mode].order[place], len(exits))
            pairs.append((slot, place))
        if len({slot for slot, _ in pairs}) < len(pairs):
            return "several of its exits have the same entry"
        rows = [tuple(slot for slot, _ in pairs)]
        for j in range(start, stop - 1):
            step = links[j]
            if isinstance(step, str):
                return step
            rows.append(tuple(slot for slot, _ in step[mode].wires))
        if len({len(row) for row in rows}) > 1:
            return "the number of values that cross its boundaries changes"
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
    """The slot that an exit continues: by its residual path, else (only exit) the nearest value of the same shape."""
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
    """Whether the value at `place` is the slot's value plus something, through additions, norms and reshapes only."""
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
        if name in ("add", "add_"):
            stack += [(arg, added or len(tensors) > 1) for arg in tensors]
        elif name in _TRUNK or name.startswith(("dropout", "feature_dropout")) or name in ("mul", "mul_"):
            stack += [(arg, added) for arg in tensors[:1] if arg.op != "get_attr"]
    return False


def _misfit(form: Form, exit_node: fx.Node, exits: int) -> str:
    entries = [slot for slot in form.slots if slot.op != "get_attr"]
    if not entries:
        return "it reads nothing that was computed before"
    before, after = meta_text(entries[0].meta.get("tensor")), meta_text(exit_node.meta.get("tensor"))
    if exits > 1:
        return f"it has {exits} exits, and `{exit_node.name}` {after} is no continuation of an entry"
    return f"{MISFIT}: entry {before}, exit {after}"


def nested_calls(view: View, form: Form) -> bool:
    """Whether a block reads something computed after one of its exits, so that it is no single step of the graph."""
    reads = [view.position[slot] for slot in form.slots if slot.op == "call_function"]
    writes = [view.position[node] for node, _ in form.exits]
    return bool(reads and writes and max(reads) > min(writes))


def odd_entry(view: View, form: Form, entry: fx.Node) -> str:
    """Why a block of its own is not simply a function of its entry; empty when it is."""
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
                return f"it reads `{arg.name}`, of which its entry `{entry.name}` was computed"
            if arg not in seen and view.position[arg] > earliest:
                seen.add(arg)
                stack.append(arg)
    return ""


def _rank(node: fx.Node) -> int:
    return len(getattr(node.meta.get("tensor"), "shape", ()))
