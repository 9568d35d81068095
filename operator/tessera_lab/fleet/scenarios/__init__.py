"""Hard situations for scaling policies, and what a policy must keep in them."""
