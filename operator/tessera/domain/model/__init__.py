"""Models of which nothing is known yet: their shape is read, and their files are fetched."""
