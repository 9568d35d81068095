"""HTTP with clients and with engines."""
