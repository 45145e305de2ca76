"""Samples for training: opened by name, fitted to a stage, and served step by step."""
