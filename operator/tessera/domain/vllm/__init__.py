"""vLLM's flags, metrics and versions, from captured tables."""
