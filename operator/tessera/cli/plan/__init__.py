"""`tessera plan`: what a plan of MIG layouts would change, and plans without a cluster."""
