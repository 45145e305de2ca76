"""Ranks: what several processes of one run agree on, and what they gather. May import `errors` only."""
