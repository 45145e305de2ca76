"""The lift: how the tensors of a program follow when it grows or shrinks: weights, averages (EMA), optimizer state.

One lift, which is plain data, maps all of them. May import `ir` and below.
"""
