"""Search: strategies that choose the stages of a schedule (linear, one-shot, zero-shot), and their proxies.

May import `schedule` and below; never the trainer.
"""
