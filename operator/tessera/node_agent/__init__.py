"""`tessera-node`: reports a node's GPUs, MIG slices and their pods, and repartitions on request."""
