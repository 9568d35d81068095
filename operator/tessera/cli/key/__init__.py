"""`tessera key`: keys of tenants for the gateway."""
