"""GPU products, the devices of a node, and the hardware that each pool offers."""
