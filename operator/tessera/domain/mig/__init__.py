"""How GPUs are cut into MIG slices: what may be cut, what to cut for a demand, and in which order.

`boards` knows the geometry, `layouts` what it allows, `mix` plans the cheapest slices.
"""
