"""GPU products, their MIG layouts, devices of a node, and the hardware that each pool offers."""
