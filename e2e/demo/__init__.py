"""The main job in steps: serve, scale, and show where everything runs and what it costs."""
