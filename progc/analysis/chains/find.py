"""The entry point: finds chains by modules, then by structure among the remaining nodes."""

from __future__ import annotations

from progc.analysis.chains.by_modules import chains_by_modules
from progc.analysis.chains.by_structure import chains_by_structure
from progc.analysis.chains.canonical import View
from progc.analysis.chains.table import Chain, ChainTable, Refused
from progc.ir.program import MODES, Program


def chains_of(program: Program) -> ChainTable:
    """Returns the chains of a program; computed once per program."""
    table: ChainTable = program.memo("chains", find_chains)
    return table


def find_chains(program: Program) -> ChainTable:
    """Finds all chains of a program, and the containers that look like a chain but are not one, with the reason."""
    views = {mode: View(program, mode) for mode in MODES}
    chains, layers, refused = chains_by_modules(views)
    covered = {name for chain in [*chains, *layers] for block in chain.blocks for name in block.nodes["eval"]}
    more, also_refused = chains_by_structure(views, covered, tuple(one.name + "." for one in refused))
    chains += more
    if chains:
        refused += [
            Refused(chain.name, "it consists of single layers, in a network that has chains of blocks")
            for chain in layers
        ]
    else:
        chains = layers
    refused += also_refused
    order = {node.name: position for node, position in views["eval"].position.items()}

    def start(chain: Chain) -> int:
        return min(order[name] for name in chain.blocks[0].nodes["eval"])

    owned = tuple(name for chain in more for block in chain.blocks for name in block.tensors)
    refused = [one for one in refused if not any(name.startswith(one.name + ".") for name in owned)]
    return ChainTable(tuple(sorted(chains, key=start)), tuple(sorted(refused, key=lambda one: one.name)))
