"""The gateway's store: usage records and leases of limits, in SQLite or PostgreSQL."""
