"""Rules of operations that the walk cannot follow by sizes alone, one file per family.

Importing the package registers the rules.
"""

from progc.transforms.resolution.rules import movement, parts, spatial

__all__ = ["movement", "parts", "spatial"]
