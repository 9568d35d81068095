"""Results of a load test as pure values: responses, statistics, engine metrics, cost, the knee."""
