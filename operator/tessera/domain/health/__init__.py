"""Health of replicas: readiness probes, stalled engines and failed starts."""
