"""Growing chains of blocks: where copies go, how graphs and names change, and what makes a copy an identity."""
