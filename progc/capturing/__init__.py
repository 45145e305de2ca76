"""Capture: turns an `nn.Module` into a `Program` with `torch.export`, or reports the line that prevents it.

The package is not called `capture` because `progc.capture` is the function. May import `ir` and below.
"""
