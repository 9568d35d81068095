"""The command `tessera size`."""
