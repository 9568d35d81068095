"""`tessera budget`: what the platform team decides about a budget by hand."""
