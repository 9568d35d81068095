"""What becomes of the record of a request, and what operators see of requests."""
