"""The latency objectives of services: what is attained, and the condition that follows."""
