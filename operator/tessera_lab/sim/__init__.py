"""`tessera-sim`: a look-alike of `vllm serve` that needs no GPU, no model and little memory."""
