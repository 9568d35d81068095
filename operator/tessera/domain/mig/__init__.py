"""Planning of MIG layouts: the cheapest slices for a demand, and the order of changes.

`mix` chooses the slices, and `plan` puts them on GPUs.
"""
