"""`tessera plan`: the MIG layout plans of a cluster's pools, and plans without a cluster."""
