"""The lift: what becomes of tensors when a program changes: weights, averages (EMA) and optimizer state.

One lift moves them all, and is plain data. May import `ir` and below.
"""
