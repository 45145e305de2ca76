"""Samples for training: opened by name, fitted to a stage, and served step by step in a reproducible order.

May import the compiler (`ir` to `transforms`, `models`); searches and the trainer build on it.
"""
