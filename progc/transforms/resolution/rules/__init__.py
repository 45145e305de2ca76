"""Rules of operations that the walk cannot follow by sizes alone, by family."""

from progc.transforms.resolution.rules import movement, parts, spatial

__all__ = ["movement", "parts", "spatial"]
