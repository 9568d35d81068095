"""The main job, played: serve, scale, and say where everything runs and what it costs."""
