"""The command `tessera explain`."""
