"""The command `tessera breakeven`."""
