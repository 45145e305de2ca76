"""Chains: runs of isomorphic blocks that depth growth inserts into (docs/architecture.md).

`chains_of` finds the chains of a program, by the names of its modules and by the structure of its graphs. May import
`ir` and below.
"""

from __future__ import annotations

from progc.analysis.chains.find import chains_of, find_chains
from progc.analysis.chains.table import Block, Chain, ChainTable, Refused

__all__ = ["Block", "Chain", "ChainTable", "Refused", "chains_of", "find_chains"]
