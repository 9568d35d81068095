"""The operator's process: kopf as its frame, and the wiring."""
