"""The gateway: one URL for all models, as a process of its own."""
