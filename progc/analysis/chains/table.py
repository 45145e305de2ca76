"""The results of chain detection: blocks, chains, refusals, and the table that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from progc.files.text import aligned
from progc.ir.program import Mode

Kind = Literal["residual", "dense"]


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a chain.

    Attributes:
        label: name of the block: its module path (`"blocks.3"`), or the pattern of its chain with its number.
        index: the number in its name.
        tensors: names of all its tensors in the state dict, including aliases and tensors that no graph reads.
        patterns: parallel to `tensors`: the name with `#` for the number of the block, so that
            `patterns[k].replace("#", str(index)) == tensors[k]`. Tensors of two blocks with the same pattern correspond
            to each other.
        nodes: per mode, names of its call nodes in graph order, without `get_attr` nodes. Values of these nodes that
            are read outside are exits (`Chain.carried`). A size (an int) that other blocks also read is not included.
    """

    label: str
    index: int
    tensors: tuple[str, ...]
    patterns: tuple[str, ...]
    nodes: Mapping[Mode, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A run of isomorphic blocks, each feeding the next, into which depth growth inserts blocks.

    Attributes:
        name: the container without the block number (`"blocks"`, `"encoder.layers.encoder_layer_#"`), or the pattern of
            a chain that was found by structure. Unique in a table.
        kind: `"residual"`: the exit of a block is the entry of the next, with the same shape and dtype. `"dense"`: the
            exit of a block is one more segment of a concatenation that all later blocks read.
        period: block i and block i + period are isomorphic; depth grows by whole periods.
        blocks: the blocks in the order of data flow, numbered without gaps.
        siblings: number of numbered blocks in the container, in the chain or not: the depth as users count it.
        pattern: prefix of the tensor names of a block, with one `#` for the number (`"blocks.#."`); the first one if
            there are several prefixes. `Block.patterns` is exact for each tensor.
        differences: differences between blocks, one line each.
        carried: per mode, per boundary j = 0 .. len(blocks), names of the values that cross it: the entry of block j
            and the exit of block j - 1. Position k of a boundary corresponds to position k of every other boundary. For
            a dense chain: the values that are concatenated at the boundary (one more at each).
        shared: per mode, names of the values computed outside that every block reads (conditioning, rotary tables,
            masks, tensors that belong to no block).
        later: labels of the numbered siblings after the last block that are not part of the chain. Their numbers change
            when blocks are inserted.
        cats: dense chains only: per mode, per boundary, the name of the concatenation node that reads the values in
            `carried`; an empty string for boundary 0 if the first block reads the entry directly.
        source: how the blocks were found.
    """

    name: str
    kind: Kind
    period: int
    blocks: tuple[Block, ...]
    siblings: int
    pattern: str
    differences: tuple[str, ...]
    carried: Mapping[Mode, tuple[tuple[str, ...], ...]]
    shared: Mapping[Mode, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    later: tuple[str, ...] = ()
    cats: Mapping[Mode, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    source: Literal["modules", "structure"] = "modules"

    def to_json(self) -> dict[str, Any]:
        """Returns plain data without node names, which have no meaning outside the program."""
        return {
            "name": self.name,
            "kind": self.kind,
            "period": self.period,
            "blocks": [block.label for block in self.blocks],
            "siblings": self.siblings,
            "pattern": self.pattern,
            "carried": len(self.carried["eval"][0]),
            "differences": list(self.differences),
            "later": list(self.later),
            "source": self.source,
        }


@dataclasses.dataclass(frozen=True)
class Refused:
    """A container, or some blocks of it, that looks like a chain but is not one, with the reason in one line."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ChainTable:
    """All chains of a program in the order of data flow, and the refusals."""

    chains: tuple[Chain, ...]
    refused: tuple[Refused, ...] = ()

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

    def __len__(self) -> int:
        return len(self.chains)

    def __getitem__(self, name: str) -> Chain:
        """Returns the chain of that name.

        Raises:
            KeyError: no chain has this name.
        """
        for chain in self.chains:
            if chain.name == name:
                return chain
        raise KeyError(name)

    def outermost(self, mode: Mode) -> list[Chain]:
        """Returns the chains that are not inside a block of another; of overlapping chains, the larger one."""
        kept: list[tuple[Chain, set[str]]] = []
        sized = [({name for block in chain.blocks for name in block.nodes[mode]}, chain) for chain in self.chains]
        for nodes, chain in sorted(sized, key=lambda item: -len(item[0])):
            if not any(nodes & covered for _, covered in kept):
                kept.append((chain, nodes))
        return [chain for chain, _ in kept]

    def to_json(self) -> dict[str, Any]:
        """Returns plain data with the keys `chains` and `refused`."""
        return {
            "chains": [chain.to_json() for chain in self.chains],
            "refused": [dataclasses.asdict(refused) for refused in self.refused],
        }

    def __str__(self) -> str:
        lines: list[str] = []
        if self.chains:
            rows: list[tuple[str, ...]] = [("chain", "kind", "period", "blocks", "siblings", "carried", "differences")]
            for chain in self.chains:
                numbers = [block.index for block in chain.blocks]
                span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
                rows.append(
                    (
                        chain.name,
                        chain.kind,
                        str(chain.period),
                        span,
                        str(chain.siblings),
                        str(len(chain.carried["eval"][0])),
                        "; ".join(chain.differences) or "none",
                    )
                )
            lines.append(aligned(rows))
        else:
            lines.append("no chains")
        if self.refused:
            lines += ["", "refused"]
            lines.append(aligned([(refused.name, refused.reason) for refused in self.refused], indent="  "))
        return "\n".join(lines)
