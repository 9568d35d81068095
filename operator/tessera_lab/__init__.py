"""The lab beside the operator: engine machine, vLLM simulator, speed fit and load tester."""
