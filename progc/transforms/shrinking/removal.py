"""Removes blocks from chains: chooses those that stay, and takes the nodes of the others out of both graphs.

The inverse of progc/transforms/depth/insertion.py. Readers of a removed block's exits read its entries instead. In a
dense chain, whose blocks append to a concatenation, the segment of a removed block leaves every concatenation. The
parameters that read it lose those columns (progc/transforms/shrinking/shrink.py), as an axis of size 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.chains import Chain
from progc.errors import TargetError
from progc.ir.graphs import copy_graph
from progc.ir.operations import CONCATENATIONS, argument, op_name, shape_of
from progc.ir.program import MODES, Mode, Program
from progc.transforms.depth.insertion import Editor
from progc.transforms.depth.naming import BlockPlace, Naming, in_order, interpolated, name_places

Rule = Literal["spread", "first", "last"]


@dataclasses.dataclass(frozen=True)
class KeptBlocks:
    """A chain that gets shorter: positions in `chain.blocks` of the blocks that stay, ascending."""

    chain: Chain
    blocks: tuple[int, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the blocks that are removed."""
        return tuple(i for i in range(len(self.chain.blocks)) if i not in self.blocks)


def kept_positions(old: int, new: int, rule: Rule) -> list[int]:
    """Returns which of `old` layers stay when `new` are left.

    `spread` keeps the first copy of every layer that the index map of growth repeats (progc/transforms/depth/naming.py;
    AutoProg, Li et al., CVPR 2022). Growing back by `identity` or `interpolate` puts each kept layer where it was.
    """
    if rule == "last":
        return list(range(old - new, old))
    if rule == "first" or new == 0:
        return list(range(new))
    sources = interpolated(new, old)
    return [sources.index(unit) for unit in range(new)]


def kept_blocks(blocks: Sequence[tuple[Chain, int]], rule: Rule) -> tuple[list[KeptBlocks], list[str]]:
    """Returns which blocks of each chain stay, for the chains that get shorter, and notes.

    Args:
        blocks: chains with their new number of blocks.
        rule: which blocks stay.
    """
    kept: list[KeptBlocks] = []
    notes: list[str] = []
    for chain, number in blocks:
        if number >= len(chain.blocks):
            continue
        if number < (2 if chain.kind == "dense" else 1):
            notes.append(f"grow-depth will not find {chain.name} again: too few of its blocks stay")
        own = rule
        if chain.kind == "dense" and rule == "spread":
            notes.append(f"{chain.name}: its first {number} blocks stay, because dense chains grow at their end")
            own = "first"
        units = kept_positions(len(chain.blocks) // chain.period, number // chain.period, own)
        kept.append(KeptBlocks(chain, tuple(unit * chain.period + i for unit in units for i in range(chain.period))))
    return kept, notes


@dataclasses.dataclass(frozen=True)
class Shorter:
    """A program without the removed blocks.

    Attributes:
        draft: its graphs, names and ties are final; its tensors are the full ones under their new names.
        origin: every new name, in the order of the model class, to its old name.
        vanished: axes of the concatenations that the removed blocks of dense chains made.
    """

    draft: Program
    origin: dict[str, str]
    vanished: frozenset[Atom]


def shortened(program: Program, kept: Sequence[KeptBlocks]) -> Shorter:
    """Returns the program with only the blocks in `kept` of these chains.

    Raises:
        TargetError: something outside a removed block reads a value from inside it.
    """
    if not kept:
        graphs = {mode: copy_graph(program.graphs[mode]) for mode in MODES}
        return Shorter(program.replace(graphs=graphs), {name: name for name in program.tensors}, frozenset())
    editor = Editor(program)
    namings = [name_places(program, one.chain, [BlockPlace(block, False) for block in one.blocks]) for one in kept]
    gone = {name for one in kept for block in one.dropped for name in one.chain.blocks[block].tensors}
    renamed = {old: new for naming in namings for old, new in naming.tensors.items()}
    origin = _ordered(program, namings, gone, renamed)
    tied, heirs = _ties(program, gone, origin)
    vanished: set[Atom] = set()
    for one in kept:
        for mode in MODES:
            if one.chain.kind == "dense":
                vanished |= _drop_dense(editor, mode, one)
            else:
                _drop(editor, mode, one)
    labels = {old: new for naming in namings for old, new in naming.labels.items()}
    editor.rename({name: renamed.get(heirs.get(name, name), heirs.get(name, name)) for name in program.tensors}, labels)
    draft = program.replace(
        graphs=editor.finish(),
        tensors={new: program.tensors[old] for new, old in origin.items()},
        specs={new: program.specs[old] for new, old in origin.items()},
        tied=tied,
    )
    return Shorter(draft, origin, frozenset(vanished))


def _ordered(
    program: Program, namings: Sequence[Naming], gone: Collection[str], renamed: dict[str, str]
) -> dict[str, str]:
    origin = {renamed.get(old, old): old for old in program.tensors if old not in gone}
    order = {name: place for naming in namings for name, place in naming.order.items()}
    return {name: origin[name] for name in in_order(list(program.tensors), origin, order)}


def _ties(program: Program, gone: Collection[str], origin: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """New aliases, and for a canonical name that is removed, the old name of the tied tensor that replaces it."""
    heirs: dict[str, str] = {}
    new_names = {old: new for new, old in origin.items()}
    tied: dict[str, str] = {}
    for new, old in origin.items():
        canonical = program.tied.get(old, old)
        if canonical in gone:
            canonical = heirs.setdefault(canonical, old)
        if canonical != old:
            tied[new] = new_names[canonical]
    return tied, heirs


def _drop(editor: Editor, mode: Mode, kept: KeptBlocks) -> None:
    """Makes readers of a removed block's exits read its entries."""
    chain, now = kept.chain, editor.now[mode]
    carried = chain.carried[mode]
    current = [now[name] for name in carried[0]]
    for block in range(len(chain.blocks)):
        for place, (before, after) in enumerate(zip(carried[block], carried[block + 1], strict=True)):
            if before == after:
                continue  # the block passes this value through
            if block in kept.blocks:
                current[place] = now[after]
            else:
                now[after].replace_all_uses_with(current[place])
    _erase(editor, mode, chain, kept.dropped)


def _drop_dense(editor: Editor, mode: Mode, kept: KeptBlocks) -> set[Atom]:
    """Removes the segments of removed blocks from the concatenations; returns the axes that they made."""
    chain, now, vanished = kept.chain, editor.now[mode], set()
    table = axes_of(editor.program)
    for block in kept.dropped:
        before, after = chain.carried[mode][block], chain.carried[mode][block + 1]
        (name,) = (name for name in after if name not in before)
        exit_, inside = now[name], set(chain.blocks[block].nodes[mode])
        for cat in [user for user in exit_.users if user.name not in inside]:
            if op_name(cat) not in CONCATENATIONS:
                raise _read_outside(chain, block, cat)
            dim = argument(cat, "dim", 0) % len(shape_of(exit_))
            own = table.values[mode, name].dims[dim]
            atoms = set(D.leaves(own))
            if not atoms or any(not _made_by(table.tensor_dims, atom, chain, block) for atom in atoms):
                raise TargetError(
                    f"shrink: the output of {chain.blocks[block].label} has an axis that other layers share, so it "
                    f"cannot leave the concatenation {cat.name}; shrink other chains (chains=...)"
                )
            vanished |= atoms
            joined = cat.args[0]
            assert isinstance(joined, (list, tuple))
            parts = [part for part in joined if part is not exit_]
            if len(parts) > 1:
                cat.args = (parts, *cat.args[1:])
            else:
                (only,) = parts
                assert isinstance(only, fx.Node)
                cat.replace_all_uses_with(only)
                editor.graphs[mode].erase_node(cat)
    _erase(editor, mode, chain, kept.dropped)
    return vanished


def _made_by(tensor_dims: Mapping[str, Sequence[Dim]], atom: Atom, chain: Chain, block: int) -> bool:
    """Whether the axis is a whole tensor dim only in this block; elsewhere it is a segment of concatenations."""
    own = set(chain.blocks[block].tensors)
    found = False
    for name, dims in tensor_dims.items():
        for dim in dims:
            if any(part is atom for part in D.resolve(dim)):
                if name not in own:
                    return False
                found = True
    return found


def _erase(editor: Editor, mode: Mode, chain: Chain, dropped: Iterable[int]) -> None:
    """Erases the nodes of removed blocks, and nodes that nothing reads without them."""
    graph = editor.graphs[mode]
    read = {node.name for node in editor.originals[mode].values() if node.users}
    inside = {name: block for block in dropped for name in chain.blocks[block].nodes[mode]}
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        # Statistics that a removed block writes are removed with it; elsewhere, nodes with side effects stay.
        orphan = node.name in read and not node.is_impure()
        if node.name in inside or orphan:
            graph.erase_node(node)
    for node in graph.nodes:
        if node.name in inside and not isinstance(node.meta.get("tensor"), int):
            raise _read_outside(chain, inside[node.name], next(iter(node.users)))


def _read_outside(chain: Chain, block: int, reader: fx.Node) -> TargetError:
    return TargetError(
        f"shrink: {chain.blocks[block].label} cannot be removed: {reader.name} reads a value from "
        f"inside it; keep it (rule=first, rule=last) or leave {chain.name} unchanged (chains=...)"
    )
