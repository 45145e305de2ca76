"""Training: runs the stages of a schedule one after another, with checked boundaries between them (docs/training.md).

May import `checkpoints`, `search`, `schedule` and everything below them; `runs` and `cli` build on it.
"""
