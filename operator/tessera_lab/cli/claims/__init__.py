"""`tessera claims`: what is promised about the cost of inference, and what of it holds."""
