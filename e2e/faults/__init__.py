"""Faults in a real world, two at a time, in the language of `tests/fault_sequences`."""
