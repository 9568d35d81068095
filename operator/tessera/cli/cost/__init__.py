"""The command `tessera cost`."""
