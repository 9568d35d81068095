"""The input of a batch: its rows, the scan of its file, and the manifest of what is valid."""
