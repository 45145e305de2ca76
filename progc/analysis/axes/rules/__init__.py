"""Op rules, one file per family. Importing this package registers all of them.

A rule takes `(ctx, node, args)`: the state of the analysis, the graph node and its arguments by schema name. It states
which dims are equal (`ctx.unify`), records what the op does with its dims (`ctx.event`, `ctx.carry`, `ctx.contract`)
and which arguments of the node are sizes (`ctx.literal`, `ctx.sizes`), and returns the dims of the result.
"""

from __future__ import annotations

from progc.analysis.axes.rules import contraction, convolution, movement, pointwise, reduction, segments

__all__ = ["contraction", "convolution", "movement", "pointwise", "reduction", "segments"]
