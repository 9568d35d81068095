"""The simulator fitted to a real vLLM and compared with it: `make fit-vllm`."""
