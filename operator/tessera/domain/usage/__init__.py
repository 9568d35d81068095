"""What requests used, summed over the records of a time."""
