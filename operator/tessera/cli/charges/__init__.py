"""The commands `tessera charges`."""
