"""Passes as such: the base class, the table of names, pipelines as text, and the manager that runs and verifies them.

No pass is defined here. May import `lift`, `ir` and below.
"""
