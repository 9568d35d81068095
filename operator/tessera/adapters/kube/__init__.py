"""The API server: its client, its objects as values, and what is asked of it beside."""
