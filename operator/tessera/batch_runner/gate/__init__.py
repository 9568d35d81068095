"""The Jobs of quality gates: a suite of prompts is asked, and each answer scored."""
