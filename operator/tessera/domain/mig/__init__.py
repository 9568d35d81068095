"""MIG geometry and layout planning: possible slices, the cheapest ones, and the order of changes.

`gpu_models` has the geometry, `layouts` checks layouts, `mix` chooses the cheapest slices, `plan`
puts them on GPUs, and `partitioning` is the node agent's part.
"""
