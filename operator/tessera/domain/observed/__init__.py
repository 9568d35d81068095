"""Facts that were observed in the cluster; imports the API types alone."""
