"""What a load would have cost: replicas that start, serve, drain and are paid, under any policy."""
