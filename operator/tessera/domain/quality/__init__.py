"""Gates before changes that can change answers: which change, which version is in force, and why."""
