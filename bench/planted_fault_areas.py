"""What a planted fault is, and the tests of each area (bench/planted_faults.py)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """One deliberate mistake.

    Attributes:
        name: its identifier.
        area: a key of `AREAS`.
        file: where `old` is expected; elsewhere in the package it is found, too.
        old: code that occurs once in the package.
        new: what takes its place.
        wrong: what goes wrong.
        first: patterns of the tests (as in `AREAS`) that are run before the others of the area.
    """

    name: str
    area: str
    file: str
    old: str
    new: str
    wrong: str
    first: tuple[str, ...] = ()


AREAS: dict[str, tuple[str, ...]] = {
    "axes": ("axes", "test_custom_rules.py", "test_head_dims.py", "test_grow_width.py"),
    "lift": (
        "test_index_map.py", "test_lift.py", "test_growth_plan.py", "growth/test_plan.py", "test_revert.py",
        "test_proof.py", "test_grow_width.py", "test_grow_depth.py",
    ),
    "demands": ("test_demand.py", "test_head_dims.py", "test_grow_depth.py", "axes/test_rules.py", "test_negative.py"),
    "chains": ("chains", "test_grow_depth.py"),
    "padding": ("padding", "test_grow_width.py"),
    "moments": ("test_moments.py", "optimizers", "!test_card.py"),
    "averages": ("test_averages.py", "test_grow_depth_mogrow.py", "test_lift.py", "checkpoints/test_round_trip.py"),
    "checkpoints": (
        "checkpoints", "!test_kill.py", "!test_hostile.py", "!test_ranks.py", "!test_docs.py", "test_data_order.py",
        "data/test_order.py", "test_saved.py", "test_guards.py", "test_metrics.py", "test_record.py", "test_trainer.py",
    ),
    "freezing": ("freezing", "test_freeze.py", "test_freeze_grow.py"),
    "trainer": (
        "test_boundary.py", "test_guards.py", "test_learning_rate.py", "test_stepping.py", "test_hashing.py",
        "test_trainer.py", "test_running.py", "test_skipping.py", "test_ending.py",
    ),
    "resolution": ("resolution", "test_grow_resolution.py"),
    "shrinking": ("shrinking", "test_shrink.py", "test_shrink_models.py"),
    "sid": ("sid", "test_inject_sid.py", "test_remove_sid.py", "test_inject_sid_growth.py"),
}  # fmt: skip
"""Tests of each area: folders and files anywhere below tests/, by the ends of their paths; `!` takes files out again.

In a tree where tests were moved or joined some patterns match nothing; the others have to find enough.
"""
