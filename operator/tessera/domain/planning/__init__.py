"""From a snapshot to the plan of a cycle."""
