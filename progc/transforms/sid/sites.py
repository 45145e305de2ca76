"""Finds the sites where a stage identifier can enter a network, by analysis.

- `conditioning`: the vector `[batch, width]` computed from per-sample inputs (time step, label, pooled text) that
  modulates the stream: the last value through which all of it passes. Several values where blocks compute their own.
- `tokens`, `features`: the residual stream at the start of the first chain of blocks, `[batch, tokens, width]` or an
  image.
- `context`: the tokens that cross-attention reads, `[batch, tokens, width]`.

Among equally good values, the search takes the first one whose row a parameter can absorb later (folding.py). The user
can choose any other value as a site, by its name in the eval graph or by the path of the module that returns it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import fx

from progc.analysis.chains import chains_of
from progc.errors import TargetError, did_you_mean
from progc.ir.operations import HOMOGENEOUS, ZERO_PRESERVING, is_float, op_name, shape_of
from progc.ir.program import MODES, Program, TensorMeta
from progc.transforms.sid.folding import Fold, find_fold
from progc.transforms.sid.places import SitePlace, Survey

KINDS = ("conditioning", "tokens", "features", "context")
_STEPS = 8
"""How far a site moves back from the entry of a chain to a value whose row can be folded."""
_BACK = {
    "relu", "gelu", "silu", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool2d", "dropout", "permute", "transpose",
    "reshape", "view", "flatten", "clone", "contiguous", "to", "hardswish",
}  # fmt: skip
_ATTENDING = {"scaled_dot_product_attention", "matmul", "bmm", "einsum", "baddbmm"}

Meetings = Mapping[str, set[tuple[str, str]]]
"""Values to the operations in which they meet others: an operation, and the operand by which it is reached."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A site of a program.

    Attributes:
        name: one of `KINDS`, or the name that the user gave.
        places: the values that get the row; all have the same width.
        width: number of entries of the row.
        fold: the parameters that can absorb the row, or why none can.
    """

    name: str
    places: tuple[SitePlace, ...]
    width: int
    fold: Fold


def find_sites(program: Program) -> tuple[Site, ...]:
    """Returns the sites found by analysis, the preferred ones first."""
    survey = Survey(program)
    finders: Sequence[Callable[[Survey], Site | None]] = (_conditioning, _stream, _context)
    return tuple(site for finder in finders if (site := finder(survey)) is not None)


def choose_site(program: Program, name: str, form: str = "add") -> Site:
    """Returns the site called `name`; for `auto`, the first one that can be folded back, else the first one.

    Args:
        program: the program without an identifier.
        name: name of a site, a module path, a node name, or `auto`.
        form: `add`, or `token`, which needs a sequence of tokens: `auto` is then the context, else the stream.

    Raises:
        TargetError: no such site; the message lists the sites found.
    """
    found = find_sites(program)
    if form == "token":
        found = tuple(site for site in reversed(found) if site.name in ("context", "tokens"))
    if name == "auto":
        if not found:
            raise TargetError(
                "inject-sid: found no site for a stage identifier; name a value of the network by the path "
                "of its module (site=path) or by its name in `progc inspect --graph`"
            )
        return found[0] if form == "token" else next((site for site in found if site.fold.targets), found[0])
    for site in found:
        if site.name == name:
            return site
    if name not in KINDS:
        named = _named(Survey(program), name)
        if named is not None and (form == "add" or named.places[0].rank == 3):
            return named
    names = [site.name for site in found]
    others = f"; sites found: {', '.join(names)}" if names else "; analysis found no sites"
    hint = did_you_mean(name, [*names, *_modules(program)]) if name not in KINDS else ""
    raise TargetError(
        f"inject-sid: site={name}: the network has no such site{hint}{others}; a module's path or a "
        "node's name also works if its value has a batch dim and a channel dim"
    )


def _site(survey: Survey, name: str, places: Sequence[SitePlace]) -> Site:
    first = places[0]
    width = shape_of(survey.nodes["eval"][first.nodes["eval"]])[first.channel]
    return Site(name, tuple(places), width, find_fold(survey.program, places))


def _best(survey: Survey, name: str, candidates: Iterable[str]) -> Site | None:
    """The first candidate that can be folded back, else the first one that is a place."""
    found = [_site(survey, name, [place]) for node in candidates if (place := survey.place(node)) is not None]
    return next((site for site in found if site.fold.targets), found[0] if found else None)


# --- conditioning ---------------------------------------------------------------------------------------------------


def _conditioning(survey: Survey) -> Site | None:
    inputs = _per_sample(survey)
    meetings = _meetings(survey, inputs)
    if not meetings:
        return None
    groups = _covering(survey, meetings, lambda node: _is_vector(survey, node))
    # A parameter that two values share absorbs the row for both or for none: they can only be folded together.
    together = [place for group in groups if (place := _first_place(survey, group)) is not None]
    site = _alike(survey, together)
    if site is not None and not site.fold.targets:
        single = (_best(survey, "conditioning", group) for group in groups)
        other = _alike(survey, [place for own in single if own is not None for place in own.places])
        site = other if other is not None and other.fold.targets else site
    return site


def _first_place(survey: Survey, names: Sequence[str]) -> SitePlace | None:
    return next((place for name in names if (place := survey.place(name)) is not None), None)


def _alike(survey: Survey, places: Sequence[SitePlace]) -> Site | None:
    """One row for all places that are as wide as the first one."""
    nodes = survey.nodes["eval"]
    widths = [shape_of(nodes[place.nodes["eval"]])[place.channel] for place in places]
    same = [place for place, width in zip(places, widths, strict=True) if width == widths[0]]
    return _site(survey, "conditioning", same) if same else None


def _per_sample(survey: Survey) -> frozenset[str]:
    """Inputs that hold a number, a label or a vector per sample, if other inputs hold more."""
    shapes = {
        node.name: meta
        for node in survey.nodes["eval"].values()
        if node.op == "placeholder" and isinstance(meta := node.meta.get("tensor"), TensorMeta)
    }
    most = max((len(meta.shape) for meta in shapes.values()), default=0)
    return frozenset(
        name
        for name, meta in shapes.items()
        if len(meta.shape) <= 1 < most or (len(meta.shape) == 2 < most and meta.dtype.is_floating_point)
    )


def _meetings(survey: Survey, inputs: frozenset[str]) -> Meetings:
    """Values computed only from `inputs`, to the operations in which they meet other values."""
    found: dict[str, set[tuple[str, str]]] = {}
    for node in survey.nodes["eval"].values():
        if node.op != "call_function" or survey.depends[node.name] <= inputs:
            continue
        for operand in node.all_input_nodes:
            given = survey.depends[operand.name]
            if given and given <= inputs and is_float(operand):
                found.setdefault(operand.name, set()).add((node.name, operand.name))
    return found


def _is_vector(survey: Survey, node: fx.Node) -> bool:
    meta = node.meta.get("tensor")
    return (
        isinstance(meta, TensorMeta)
        and node.op == "call_function"
        and meta.dtype.is_floating_point
        and len(meta.shape) == 2
        and node.name in survey.learned
    )


def _covering(survey: Survey, meetings: Meetings, fits: Callable[[fx.Node], bool]) -> list[list[str]]:
    """Values through which everything that meets passes: per group of meetings the values that reach it, best first.

    The best one is the last sum or the last value that an activation reads. The layers after it make scales and shifts
    of it, several widths in one.
    """
    reach: dict[str, frozenset[tuple[str, str]]] = {}
    order = list(survey.nodes["eval"].values())
    for node in reversed(order):
        own = frozenset(meetings.get(node.name, ()))
        met = {name for name, _ in own}
        alone = (user for user in node.users if user.name not in met)
        reach[node.name] = own.union(*(reach.get(user.name, frozenset()) for user in alone))
    position = {node.name: index for index, node in enumerate(order)}
    # Values after a meeting depend on more than the values that meet there.
    inputs: frozenset[str] = frozenset().union(*(survey.depends[name] for name in meetings))
    able = {
        node.name
        for node in order
        if reach[node.name] and survey.depends[node.name] and survey.depends[node.name] <= inputs and fits(node)
    }
    groups: list[list[str]] = []
    covered: frozenset[tuple[str, str]] = frozenset()
    while True:
        left = [name for name in able if not reach[name] & covered]
        if not left:
            return groups
        largest = max(left, key=lambda name: (len(reach[name]), -position[name]))
        alike = [name for name in left if reach[name] == reach[largest]]
        nodes = survey.nodes["eval"]
        groups.append(sorted(alike, key=lambda name: (not _is_embedding(nodes[name]), -position[name])))
        covered |= reach[largest]


def _is_embedding(node: fx.Node) -> bool:
    merged = op_name(node) == "add" and all(is_float(operand) for operand in node.args[:2])
    return merged or any(op_name(user) in ZERO_PRESERVING | HOMOGENEOUS for user in node.users)


# --- streams --------------------------------------------------------------------------------------------------------


def _stream(survey: Survey) -> Site | None:
    nodes = survey.nodes["eval"]
    for chain in chains_of(survey.program):
        if chain.kind == "residual":
            site = _entering(survey, chain.carried["eval"][0])
            if site is not None:
                return site
    weighted = [node for node in nodes.values() if node.op == "call_function" and _makes_channels(survey, node)]
    following: list[fx.Node] = weighted[:1]
    while following and len(following) < _STEPS and len(following[-1].users) == 1:
        following.append(next(iter(following[-1].users)))
    names = [node.name for node in following if is_float(node)]
    return _best(survey, _stream_name(nodes[names[0]]), names) if names else None


def _entering(survey: Survey, entries: Sequence[str]) -> Site | None:
    nodes = survey.nodes["eval"]
    streams = [name for name in entries if is_float(nodes[name]) and survey.depends[name]]
    if len(streams) != 1:
        return None
    candidates = [streams[0]]
    node = nodes[streams[0]]
    while len(candidates) < _STEPS and node.op == "call_function" and (op_name(node) in _BACK):
        above = node.args[0]
        if not isinstance(above, fx.Node) or len(above.users) > 1:
            break
        candidates.append(above.name)
        node = above
    return _best(survey, _stream_name(nodes[streams[0]]), candidates)


def _stream_name(node: fx.Node) -> str:
    return "tokens" if len(shape_of(node)) == 3 else "features"


def _makes_channels(survey: Survey, node: fx.Node) -> bool:
    """The first layers: their result is computed from an input and a weight matrix."""
    weights = [item for item in node.all_input_nodes if item.op == "get_attr" and item.name in survey.learned]
    matrices = [item for item in weights if len(item.meta["tensor"].shape) > 1]
    return bool(matrices) and bool(survey.depends[node.name]) and is_float(node)


# --- context --------------------------------------------------------------------------------------------------------


def _context(survey: Survey) -> Site | None:
    """Tokens that attention reads and that depend on fewer inputs than its queries."""
    per_sample = _per_sample(survey)
    meetings: dict[str, set[tuple[str, str]]] = {}
    for node in survey.nodes["eval"].values():
        if node.op != "call_function" or op_name(node) not in _ATTENDING:
            continue
        all_of = survey.depends[node.name]
        asking = node.args[:1] if op_name(node) == "scaled_dot_product_attention" else ()
        for operand in (item for item in node.all_input_nodes if item not in asking):
            given = survey.depends[operand.name] - per_sample
            if given and given < all_of - per_sample and is_float(operand):
                meetings.setdefault(operand.name, set()).add((node.name, operand.name))
    if not meetings:
        return None
    nodes = survey.nodes["eval"]
    groups = _covering(survey, meetings, lambda node: is_float(node) and len(_shape(node)) == 3)
    groups = [[name for name in group if survey.depends[name] - per_sample] for group in groups]
    return _best(survey, "context", [name for name in groups[0] if name in nodes]) if groups else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor")
    return meta.shape if isinstance(meta, TensorMeta) else ()


# --- by name --------------------------------------------------------------------------------------------------------


def _named(survey: Survey, name: str) -> Site | None:
    nodes = survey.nodes["eval"]
    if name in nodes:
        return _best(survey, name, [name])
    inside = [node for node in nodes.values() if node.op == "call_function" and name in _paths(node)]
    kept = set(inside)
    exits = [node for node in inside if any(user not in kept for user in node.users)]
    return _best(survey, name, [exits[0].name]) if len(exits) == 1 else None


def _paths(node: fx.Node) -> set[str]:
    return {str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()}


def _modules(program: Program) -> list[str]:
    return sorted({path for mode in MODES for node in program.graphs[mode].nodes for path in _paths(node) if path})
