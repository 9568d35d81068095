"""Status of services, pools, budgets and batches, from the plan."""
