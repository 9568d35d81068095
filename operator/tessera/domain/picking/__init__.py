"""Choosing the replica of a request: the one with the least predicted time to the first token.

`replica_state` has what a gateway knows of a replica, `prediction` the seconds until its
first token, `health` ejection and slow start, and `pick` the choice. `prefix_record` has what each
replica holds of earlier prompts.
"""
