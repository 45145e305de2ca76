"""Ranks: communication between the processes of a distributed run. May import `errors` only."""
