"""The command `tessera gate`."""
