"""`tessera explain`: why a service is as it is, and what would change it."""
