"""The look-alike engine held against a real vLLM."""
