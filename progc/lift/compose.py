"""Two lifts as one: what a pass that takes two steps returns."""

from __future__ import annotations

import dataclasses

from progc.errors import TargetError
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift

_OWN = {"name", "source"}


def composed(first: Lift, second: Lift) -> Lift:
    """The lift that does `first` and then `second`.

    Raises:
        TargetError: both change one tensor in a way that has no single entry.
    """
    known = {entry.name: entry for entry in first.tensors}
    entries = dict(known)
    for entry in second.tensors:
        before = known.get(entry.source)
        if entry.source != entry.name:
            entries.pop(entry.source, None)
        entries[entry.name] = entry if before is None else _joined(before, entry)
    for name in second.removed:
        entries.pop(name, None)
    return dataclasses.replace(
        second,
        tensors=tuple(entries.values()),
        removed=first.removed | (second.removed - known.keys()),
        made=(*first.made, *second.made),
    )


def _joined(before: TensorLift, after: TensorLift) -> TensorLift:
    """One entry for both: every field is set by one of them, every dim changed by one of them."""
    changes: dict[str, object] = {"name": after.name, "source": before.source}
    for field in dataclasses.fields(TensorLift):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if field.name in _OWN or one == field.default or one == other:
            continue
        if other == field.default:
            changes[field.name] = one
        elif field.name == "dims" and not any(a and b for a, b in zip(one, other, strict=True)):
            changes["dims"] = tuple(a or b for a, b in zip(one, other, strict=True))
        else:
            raise TargetError(
                f"shrink: {before.source} changes twice, by its units and by the resolution; apply one pass after the "
                "other: shrink{...},grow-resolution{...}"
            )
    return dataclasses.replace(after, **changes)  # type: ignore[arg-type]
