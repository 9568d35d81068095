"""What hostile clients and engines do to a gateway, for `bench_hostile`."""
