"""`tessera simulate`: what a load would have cost, and how well the SLO would have been kept."""
