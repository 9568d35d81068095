"""What a model needs before its engines: its shape, and its files on claims, both by Jobs."""
