"""`tessera engine`: what one engine does with a load, by its options."""
