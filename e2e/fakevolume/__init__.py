"""Volumes that refuse writes for a while, in the test's own process and in those of a world."""
