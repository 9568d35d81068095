"""GPU products, the devices of a node, and what each pool offers."""
