"""Op rules, one file per family. Importing this package registers them all.

A rule takes `(ctx, node, args)`: the analysis state, the graph node and its arguments by schema name. It states
equalities (`ctx.unify`), records what the op does with its dims (`ctx.event`, `ctx.carry`, `ctx.contract`),
owns the sizes baked into the node (`ctx.literal`, `ctx.sizes`) and returns the dims of the result.
"""

from __future__ import annotations

from progc.analysis.axes.rules import contraction, convolution, movement, pointwise, reduction, segments

__all__ = ["contraction", "convolution", "movement", "pointwise", "reduction", "segments"]
