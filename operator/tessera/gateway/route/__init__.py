"""Which target of a route answers a request."""
