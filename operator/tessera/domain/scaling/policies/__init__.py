"""The policies that decide how many replicas a service has, one room for each."""
