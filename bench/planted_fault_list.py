"""Sixty faults for bench/planted_faults.py, and the tests of the areas that they are in.

A fault is a realistic small mistake: a wrong sign, an end that is one off, a condition that was dropped, a forgotten
copy. None of them stops the package from being imported, and each changes what reachable inputs give.
"""

from __future__ import annotations

from bench.planted_fault_areas import Fault

_AXES = (
    Fault(
        "axes-grouped-queries", "axes", "progc/analysis/axes/rules/attention.py",
        "lead[-1] = outer + inner",
        "lead[-1] = inner + outer",
        "Query heads are taken for group size times key heads, so that copies of a head meet the wrong keys.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-group-norm", "axes", "progc/analysis/axes/rules/norm.py",
        'ctx.event("normalise", inner)',
        'ctx.event("normalise", outer)',
        "Channels inside a group of a group norm may grow unevenly, which changes its statistics.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-variance", "axes", "progc/analysis/axes/rules/reduction.py",
        'ctx.literal(args.paths["correction"], dim, value=correction)',
        'ctx.literal(args.paths["correction"], dim)',
        "The correction of an unbiased variance becomes the number of units instead of growing with it.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-batch-norm", "axes", "progc/analysis/axes/rules/norm.py",
        'if ctx.op == "aten.instance_norm" or args["training"]:',
        'if ctx.op == "aten.instance_norm":',
        "A batch norm in train mode is not seen to take statistics over channels that lie in its other dims.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-glu", "axes", "progc/analysis/axes/rules/segments.py",
        "ctx.unify(value, gate)",
        "ctx.unify(value, value)",
        "The two halves that a gated linear unit multiplies are two axes, and one may grow without the other.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-slice-end", "axes", "progc/analysis/axes/rules/segments.py",
        'ctx.literal(args.paths["end"], *before, taken)',
        'ctx.literal(args.paths["end"], taken)',
        "The end of a slice follows the part that is taken and forgets what stands before it.",
        ("test_rules.py",),
    ),
    Fault(
        "axes-einsum-heads", "axes", "progc/analysis/axes/rules/linear.py",
        "shared = letter in kept and sum(letter in names for names in activations) > 1",
        "shared = sum(letter in names for names in activations) > 1",
        "The letter that an einsum of queries and keys sums over is taken for their heads.",
        ("test_table.py",),
    ),
    Fault(
        "axes-merged-reasons", "axes", "progc/analysis/axes/dims.py",
        "pin((y,), reason, place)",
        "pin((x,), reason, place)",
        "When two axes become one, the reasons why the first may not grow are lost.",
        ("test_dims.py",),
    ),
)  # fmt: skip

_LIFT = (
    Fault(
        "lift-rest", "lift", "progc/lift/shares.py",
        "(torch.where(on, parts, 0), dim, index)",
        "(parts, dim, index)",
        "What rounding left over is counted with units that take no share, so that shares do not sum to the weight.",
        ("test_lift.py",),
    ),
    Fault(
        "lift-clamp", "lift", "progc/lift/shares.py",
        "spread = spread.clamp_(-1, 1).double()",
        "spread = spread.double()",
        "With much noise a share is larger than the weight, and its last bit is lost.",
        ("test_lift.py",),
    ),
    Fault(
        "lift-gain", "lift", "progc/lift/shares.py",
        "gain *= (over.old / over.new) ** 0.5",
        "gain *= over.old / over.new",
        "Random rows of a wider fan-in are drawn with the ratio instead of its root, too small.",
        ("test_lift.py",),
    ),
    Fault(
        "lift-order", "lift", "progc/lift/lift.py",
        "key=lambda item: item[0] in contracted)",
        "key=lambda item: item[0] not in contracted)",
        "Rows are copied after the shares were drawn, so that copies of a row have equal shares and never part.",
        ("test_lift.py",),
    ),
    Fault(
        "lift-counts", "lift", "progc/lift/index_map.py",
        "tally.index_add_(0, index[~fresh], torch.ones_like(index[~fresh]))",
        "tally.index_add_(0, index, torch.ones_like(index))",
        "New units count as copies, so that real copies get too small a share.",
        ("test_index_map.py",),
    ),
    Fault(
        "lift-fresh-tied", "lift", "progc/lift/lift.py",
        "if entry.fresh or key not in made:",
        "if key not in made:",
        "Two blocks that are inserted after the same one are one tensor in memory and train together.",
        ("test_grow_depth.py",),
    ),
)  # fmt: skip

_DEMANDS = (
    Fault(
        "demands-root", "demands", "progc/transforms/width/owed.py",
        "extra = math.sqrt(ratio) if debt.root else 1.0",
        "extra = ratio if debt.root else 1.0",
        "Attention that divides by the root of the head dim is made up for by the ratio instead of its root.",
        ("test_head_dims.py", "test_rules.py"),
    ),
    Fault(
        "demands-constant", "demands", "progc/analysis/demand/steps.py",
        "if isinstance(node.args[1], (int, float)) and node.args[1] == 0:",
        "if isinstance(node.args[1], (int, float)):",
        "A factor is said to pass the addition of a constant other than zero.",
        ("test_demand.py",),
    ),
    Fault(
        "demands-in-place", "demands", "progc/analysis/demand/solver.py",
        "known = {**factors, **met}",
        "known = {**factors}",
        "A value that is silenced, written to in place and then read counts as silent.",
        ("test_demand.py",),
    ),
    Fault(
        "demands-order", "demands", "progc/analysis/demand/factors.py",
        "flat = flat.permute([order[label] for label in to if label in order])",
        "flat = flat.permute([order[label] for label in labels if label in order])",
        "Factors that vary along two dims keep the order of the operand where the result has another one.",
        ("test_demand.py",),
    ),
    Fault(
        "demands-broadcast", "demands", "progc/analysis/demand/factors.py",
        "mask = mask.any(dim, keepdim=True)",
        "mask = mask.all(dim, keepdim=True)",
        "A value that is broadcast is scaled only if all who read it ask for that, and not if one does.",
        ("test_demand.py",),
    ),
    Fault(
        "demands-bent", "demands", "progc/transforms/width/owed.py",
        "below[node] = any(above) or op_name(node) in HOMOGENEOUS",
        "below[node] = any(above)",
        "Uneven shares are given to a weight whose products go through a relu before they are summed.",
        ("test_negative.py", "test_rules.py"),
    ),
)  # fmt: skip

_CHAINS = (
    Fault(
        "chains-shared", "chains", "progc/analysis/chains/runs.py",
        "return all(a is b for k, (a, b) in enumerate(slots) if k not in step.carried)",
        'return all(a.meta.get("tensor") == b.meta.get("tensor") for a, b in slots)',
        "Blocks that read different values of one shape count as alike.",
        ("test_own_models.py",),
    ),
    Fault(
        "chains-period", "chains", "progc/analysis/chains/runs.py",
        "return start + (stop - start) // period * period",
        "return stop",
        "A run of alternating blocks may end in the midst of a period.",
        ("test_own_models.py",),
    ),
    Fault(
        "chains-constants", "chains", "progc/analysis/chains/canonical.py",
        'return ("constant", meta, self.view.constant(name))',
        'return ("constant", meta)',
        "Blocks with different constants (masks, tables) count as alike.",
        ("test_own_models.py",),
    ),
    Fault(
        "chains-numbers", "chains", "progc/analysis/chains/numbering.py",
        "min(values) not in (previous, previous + 1)",
        "min(values) < previous",
        "Blocks whose numbers leave gaps become a chain, and new blocks get names that others have.",
        ("test_own_models.py",),
    ),
    Fault(
        "chains-two", "chains", "progc/analysis/chains/repeats.py",
        "if stop - start >= period:",
        "if stop - start > period:",
        "Two blocks whose operations repeat exactly once are no chain.",
        ("test_own_models.py",),
    ),
    Fault(
        "chains-dense-reader", "chains", "progc/analysis/chains/dense.py",
        "if any(user not in every for user in node.users):",
        "if all(user not in every for user in node.users):",
        "A layer of a dense chain may be read by something else, which would miss the new layers.",
        ("test_own_models.py", "test_real_models.py"),
    ),
)  # fmt: skip

_PADDING = (
    Fault(
        "padding-joined", "padding", "progc/analysis/padding/states.py",
        'if kinds == {"mean", "const"} and not a.weights and not b.weights:',
        'if kinds == {"mean", "const"}:',
        "A weighted mean plus a constant is said to be the plain mean.",
        ("test_states.py",),
    ),
    Fault(
        "padding-mean-of-zeros", "padding", "progc/analysis/padding/norms.py",
        '(given.power - 2, "const")',
        '(given.power - 1, "const")',
        "A mean over units of which the new ones are zero loses the root of the ratio instead of the ratio.",
        ("test_padding.py",),
    ),
    Fault(
        "padding-power", "padding", "progc/transforms/width/widening.py",
        "factor = (self.new[atom] / atom.size) ** (state.power / 2)",
        "factor = (self.new[atom] / atom.size) ** state.power",
        "Old units are scaled by the ratio instead of its root.",
        ("test_padding.py",),
    ),
    Fault(
        "padding-sign", "padding", "progc/analysis/padding/summing.py",
        '(a.power + b.power, "const")',
        '(a.power - b.power, "const")',
        "In a sum of products the factor of a weight is divided by that of what it reads instead of multiplied.",
        ("test_padding.py",),
    ),
    Fault(
        "padding-gains", "padding", "progc/lift/filling.py",
        "old = old * entries[unit % len(entries)]",
        "old = old * entries[group % len(entries)]",
        "The mean of old units is weighted with the gains of other units.",
        ("test_padding.py",),
    ),
    Fault(
        "padding-degree", "padding", "progc/analysis/padding/reading.py",
        "degrees = {self._degree(segment) for segment in atom.segments}",
        "degrees = {max(self._degree(segment) for segment in atom.segments)}",
        "A concatenation with a part that does not grow is said to grow in proportion.",
        ("test_reading.py",),
    ),
)  # fmt: skip

_MOMENTS = (
    Fault(
        "moments-square", "moments", "progc/lift/moments.py",
        "result = result * (law.gradient**moment.power).to(value.device, dtype).reshape(along)",
        "result = result * law.gradient.to(value.device, dtype).reshape(along)",
        "Second moments follow the gradient instead of its square.",
        ("test_moments.py",),
    ),
    Fault(
        "moments-scale", "moments", "progc/lift/moments.py",
        "weight, gradient, reset = weight * values, gradient / values, reset | (values == 0)",
        "weight, gradient, reset = weight * values, gradient * values, reset | (values == 0)",
        "The gradient of a weight that was scaled is scaled with it instead of against it.",
        ("test_moments.py",),
    ),
    Fault(
        "moments-where", "moments", "progc/lift/moments.py",
        "shared &= torch.tensor(split.where)[index]",
        "shared |= torch.tensor(split.where)[index]",
        "Units that take no part in a division count as divided.",
        ("test_moments.py",),
    ),
    Fault(
        "moments-past", "moments", "progc/lift/moments.py",
        "past = result if bool(reset.all()) else result[~reset]",
        "past = result",
        "The second moment of new units is a mean that counts the entries which have no past.",
        ("test_moments.py",),
    ),
    Fault(
        "moments-adamax", "moments", "progc/lift/moments.py",
        '"exp_inf": _Moment(1, True)',
        '"exp_inf": _Moment(2, True)',
        "Adamax's largest gradient is mapped like a square.",
        ("test_moments.py",),
    ),
)  # fmt: skip

_AVERAGES = (
    Fault(
        "averages-warmup", "averages", "progc/lift/averages.py",
        "step = update - 1",
        "step = update",
        "The warm-up of the decay is one update ahead, and the first update does not copy.",
        ("test_averages.py",),
    ),
    Fault(
        "averages-copy", "averages", "progc/lift/averages.py",
        "tensor.detach().to(torch.float32 if low else tensor.dtype, copy=True)",
        "tensor.detach().to(torch.float32 if low else tensor.dtype)",
        "An averaged copy is the memory of the network itself.",
        ("test_averages.py",),
    ),
    Fault(
        "averages-clone", "averages", "progc/lift/averages.py",
        "{name: given[name] if name in given else tensor.detach().clone() for name, tensor in tensors.items()}",
        "{name: given[name] if name in given else tensor.detach() for name, tensor in tensors.items()}",
        "Buffers that an average does not hold are shared with the network and written to in training.",
        ("test_averages.py",),
    ),
    Fault(
        "averages-count", "averages", "progc/lift/averages.py",
        'self.num_updates = int(state["num_updates"])',
        "self.num_updates = int(self.num_updates)",
        "The number of updates is not loaded, so that a warm-up begins again.",
        ("test_averages.py",),
    ),
)  # fmt: skip

_CHECKPOINTS = (
    Fault(
        "checkpoints-gauss", "checkpoints", "progc/checkpoints/rng.py",
        '"has_gauss": int(numpy["has_gauss"])',
        '"has_gauss": 0',
        "The second number of a pair that numpy has drawn already is forgotten.",
        ("test_round_trip.py",),
    ),
    Fault(
        "checkpoints-position", "checkpoints", "progc/schedule/pace.py",
        "return begin.epoch, begin.index + steps * batch",
        "return begin.epoch, begin.index + steps",
        "A run that resumes within an epoch sees samples twice: steps are taken for samples.",
        ("test_trainer.py",),
    ),
    Fault(
        "checkpoints-live", "checkpoints", "progc/checkpoints/saver.py",
        "args=(held.moved(self._buffers), replace)",
        "args=(held, replace)",
        "The thread writes tensors while training changes them.",
        ("test_saver.py",),
    ),
    Fault(
        "checkpoints-best", "checkpoints", "progc/checkpoints/keeping.py",
        "if len(kept) < keep or (marked is not None and marked[0] == step):",
        "if len(kept) < keep or (marked is not None and marked[0] >= step):",
        "Everything older than the best checkpoint stays, too.",
        ("test_keeping.py",),
    ),
    Fault(
        "checkpoints-validated", "checkpoints", "progc/train/seen.py",
        '"validated": self.validated, "news": self._news,',
        '"validated": None, "news": self._news,',
        "A run that resumes right after a validation validates a second time.",
        ("test_trainer.py",),
    ),
    Fault(
        "checkpoints-options", "checkpoints", "progc/lift/optimizers/saved.py",
        'options.append({**base, **group["options"], **{key: base[key] for key in _OWN if key in base}})',
        'options.append({**group["options"], **base})',
        "Learning rates of the optimizer at hand win over the saved ones.",
        ("test_saved.py",),
    ),
)  # fmt: skip

_FREEZING = (
    Fault(
        "freezing-level", "freezing", "progc/transforms/freezing/select.py",
        "b % selection.of >= selection.level",
        "b % selection.of > selection.level",
        "One block more of each group trains.",
        ("test_freeze.py",),
    ),
    Fault(
        "freezing-norms", "freezing", "progc/transforms/freezing/setting.py",
        "if own and not any(name in names for name in own):",
        "if own and not all(name in names for name in own):",
        "The statistics of a norm stand still although its shift trains.",
        ("test_statistics.py",),
    ),
    Fault(
        "freezing-tied", "freezing", "progc/transforms/freezing/blocks.py",
        "frozenset(canonical for canonical, aliases in groups.items() if aliases <= names)",
        "frozenset(canonical for canonical, aliases in groups.items() if aliases & names)",
        "A tensor that a block shares with another part of the network is frozen with the block.",
        ("test_blocks.py", "test_freeze.py"),
    ),
    Fault(
        "freezing-fixed", "freezing", "progc/transforms/freezing/select.py",
        "names = frozenset() if selection.train and alone else everything - fixed",
        "names = frozenset() if selection.train and alone else everything",
        "Parameters that the user's class does not train are trained.",
        ("test_freeze.py",),
    ),
)  # fmt: skip

_TRAINER = (
    Fault(
        "trainer-skipped-average", "trainer", "progc/train/trainer.py",
        "elif outcome.skipped is None:\n                active.running",
        "else:\n                active.running",
        "Averages move in steps that were left out.",
        ("test_skipping.py",),
    ),
    Fault(
        "trainer-weight", "trainer", "progc/train/stepping.py",
        "weight = size / sum(sizes)",
        "weight = 1 / len(sizes)",
        "Samples of a small micro-batch count more than those of a large one.",
        ("test_stepping.py",),
    ),
    Fault(
        "trainer-row", "trainer", "progc/train/boundary.py",
        "**stage_inputs(program, self._stage, samples_in(self.batch), self.parallel.device)",
        "**stage_inputs(program, running.stage, samples_in(self.batch), self.parallel.device)",
        "Outputs before and after a boundary are compared with two rows of the stage identifier.",
        ("test_boundary.py",),
    ),
    Fault(
        "trainer-peak", "trainer", "progc/train/learning_rate.py",
        'group["lr"] = group.setdefault("initial_lr", group["lr"]) * value',
        'group["lr"] = group.get("initial_lr", group["lr"]) * value',
        "A group without a peak of its own multiplies the rate of the step before.",
        ("test_learning_rate.py",),
    ),
)  # fmt: skip

_OTHERS = (
    Fault(
        "resolution-waves", "resolution", "progc/lift/resampling.py",
        """step = values["step"] * (old / new if not before and values["stretch"] else 1.0)""",
        """step = values["step"] * (new / old if not before and values["stretch"] else 1.0)""",
        "Positions of a computed table lie further apart in a larger image instead of closer together.",
        ("test_resize.py", "test_grow_resolution.py"),
    ),
    Fault(
        "resolution-shift", "resolution", "progc/transforms/resolution/rules/spatial.py",
        "scaled_shift(shift, part[0].old, part[0].new)",
        "scaled_shift(shift, part[0].new, part[0].old)",
        "The shift of windows that grow gets smaller.",
        ("test_grow_resolution.py",),
    ),
    Fault(
        "shrinking-back", "shrinking", "progc/lift/places.py",
        "value = value / factor.to(value.device, value.dtype).reshape(shape)",
        "value = value * factor.to(value.device, value.dtype).reshape(shape)",
        "Weights of a sub-network are written back multiplied by the factor of its fan-in instead of divided.",
        ("test_shrink.py", "test_places.py"),
    ),
    Fault(
        "sid-subtrahend", "sid", "progc/transforms/sid/folding.py",
        'for operand in node.args[: 2 if name == "add" else 1]:',
        "for operand in node.args[:2]:",
        "A row is folded into what is subtracted, with the wrong sign.",
        ("test_folding.py",),
    ),
    Fault(
        "sid-guided-rest", "sid", "progc/transforms/sid/guidance.py",
        "return torch.cat([combined[:, :channels], given[:, channels:]], 1)",
        "return torch.cat([combined[:, :channels], null[:, channels:]], 1)",
        "Channels that are not guided come from the unconditional half.",
        ("test_guidance.py",),
    ),
)  # fmt: skip

FAULTS: tuple[Fault, ...] = (
    *_AXES, *_LIFT, *_DEMANDS, *_CHAINS, *_PADDING, *_MOMENTS, *_AVERAGES, *_CHECKPOINTS, *_FREEZING, *_TRAINER,
    *_OTHERS,
)  # fmt: skip
