"""The instance type of a service by its recorded load: how many GPUs a replica has."""
