"""The program: two torch.fx graphs over one set of tensors. Prints, runs, verifies and compares programs.

Properties of single operations, files of tensors and random states are here too. May import `files`, `ranks` and
`errors`; knows no analysis and no pass.
"""
