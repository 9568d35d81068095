"""The service that answers a request, and what it needs there."""
