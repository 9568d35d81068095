"""`tessera cost`: what was billed, by service, tenant or pool."""
