"""The steps of a turn: observe, decide, apply."""
