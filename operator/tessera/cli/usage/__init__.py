"""The command `tessera usage`."""
