"""The models and engines that a gateway knows, and what it tells the operator."""
