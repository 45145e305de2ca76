"""Capture: an `nn.Module` becomes a `Program` by `torch.export`, or is refused with the line at fault.

The package is not called `capture`, because `progc.capture` is the function. May import `ir` and below.
"""
