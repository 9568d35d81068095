"""The bill: the cost of the nodes of all pools, allocated to services, batches and idle slices."""
