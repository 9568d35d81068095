"""What the rows of a batch got: part files, the ledger over them, and published results."""
