"""Search: the strategies that choose the stages of a schedule (linear, one-shot, zero-shot), and zero-shot proxies.

`progc.search.plan` is the entry. May import `schedule` and below, but not `checkpoints` or the trainer.
"""
