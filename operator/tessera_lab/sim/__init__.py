"""`tessera-sim`: a simulator of `vllm serve` without GPU and weights, in little memory."""
