"""Bodies of requests: what is read of them, and the memory and the time that they take."""
