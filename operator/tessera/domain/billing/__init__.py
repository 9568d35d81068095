"""The bill: what the nodes of all pools cost, split over services, batches and idle slices."""
