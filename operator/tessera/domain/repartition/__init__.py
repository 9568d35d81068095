"""Carry out planned MIG layouts without an outage for any service; pure.

`cycle` is the entry: it poses the layout problem, adopts plans and calls `rollout` for every pool,
which drains and partitions GPUs unit by unit.
"""
