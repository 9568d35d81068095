"""`tessera top`: services and pools by cost and load."""
