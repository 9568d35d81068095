"""Which target of a route gets a request, who is asked next, and what that saves."""
