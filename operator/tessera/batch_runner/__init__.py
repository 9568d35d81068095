"""The batch runner: feeds every row of a file to the engine beside it, and publishes once."""
