"""The outside world behind the ports. Adapters translate; they have no opinion."""
