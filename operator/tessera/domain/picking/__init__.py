"""Choosing the replica of a request: the one with the least predicted time to the first token.

`replica_state` has what one gateway worker knows of a replica, `prediction` the seconds until its
first token, `health` ejection and slow start, and `pick` the choice.
"""
