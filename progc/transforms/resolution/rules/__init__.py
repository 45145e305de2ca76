"""Rules of operations that the walk cannot follow by sizes alone, by family."""

from progc.transforms.resolution.rules import contractions, creation, lookups, movement, parts, spatial, views

__all__ = ["contractions", "creation", "lookups", "movement", "parts", "spatial", "views"]
