"""Sizing: what fits on a device, scheduler limits, precision and the table of `tessera size`."""
