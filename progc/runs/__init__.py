"""A run as a user sees it: its config, opening it, dry and smoke runs, the record, plots and `progc doctor`.

May import `train` and everything below; only the command line stands above.
"""
