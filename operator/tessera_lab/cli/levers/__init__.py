"""`tessera levers`: what each lever is worth on a fleet."""
