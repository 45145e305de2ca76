"""Runs as the user sees them: configuration, opening, dry and smoke runs, records, plots, exports and `progc doctor`.

May import `train` and everything below it; only `cli` builds on it.
"""
