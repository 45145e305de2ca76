"""The base class of passes, the table of their names, pipelines as text, and the manager that runs and verifies them.

The passes themselves are defined in `passes/`. May import `lift`, `ir` and below.
"""
