"""`tessera snapshot`: a fleet in a file, and the plan that the operator makes of it."""
