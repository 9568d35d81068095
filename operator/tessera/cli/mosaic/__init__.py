"""`tessera mosaic`: the MIG layouts of a pool as a picture."""
