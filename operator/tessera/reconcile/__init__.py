"""The steps of a reconcile cycle: observe, decide, apply."""
