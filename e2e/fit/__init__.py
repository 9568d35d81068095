"""The look-alike engine fitted to a real vLLM and held against it: `make fit-vllm`."""
