"""Every decision about a service: what was decided, by which numbers, and what would change it."""
