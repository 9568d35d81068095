"""The operator's process: the kopf application and the wiring."""
