"""The version of progc, in a module of its own so that nothing inside the package imports `progc/__init__`."""

__version__ = "0.1.0"
