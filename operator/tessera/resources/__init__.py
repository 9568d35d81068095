"""Translation of decisions into Kubernetes manifests; pure."""
