"""`tessera doctor`: checks, each a function from a `CheckContext` to findings."""
