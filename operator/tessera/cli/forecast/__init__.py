"""The command `tessera forecast`."""
