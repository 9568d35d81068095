"""Changes that can change answers: which they are, how they are tried, and what is decided."""
