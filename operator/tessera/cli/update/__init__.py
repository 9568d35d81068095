"""`tessera update`: roll a service to the newest pod template and weights."""
