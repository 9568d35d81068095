"""From what services need to GPUs that are cut so, and nobody hurt on the way; pure.

`wish` asks the planner, `drawing` makes plans of its answers and `target` keeps one, `rollout`
carries it out unit by unit, and `backends` say what has to be written for that.
"""
