"""The program: two torch.fx graphs over one set of tensors, with printing, running, verifying and comparing.

Traits of operations live here too. May import `files` and `errors`; knows no analysis and no pass.
"""
