"""Which dims of a view come from which: sizes alone say it. Needs no graph, so that lifts can use it too."""

from __future__ import annotations


def reshape_groups(old: list[int], wanted: list[int]) -> list[tuple[range, range]]:
    """Smallest runs of old and new dims with equal products: within one, factors are handed out anew."""
    found = []
    i = j = 0
    while i < len(old) or j < len(wanted):
        first_i, first_j = i, j
        left = right = 1
        while (left != right or (i == first_i and j == first_j)) and (i < len(old) or j < len(wanted)):
            if (left <= right and i < len(old)) or j >= len(wanted):
                left *= old[i]
                i += 1
            else:
                right *= wanted[j]
                j += 1
        found.append((range(first_i, i), range(first_j, j)))
    return found
