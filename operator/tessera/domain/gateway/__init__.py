"""What the gateway decides with: who may use which model, on which replicas."""
