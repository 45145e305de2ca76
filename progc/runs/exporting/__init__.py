"""What a run ends with: its network in a file or folder that other programs load (docs/training.md).

May import what `runs` may import; only `cli` builds on it.
"""
