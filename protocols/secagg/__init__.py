"""Secure aggregation: a server sums vectors it cannot see. Start at `local` or at `session`."""
