"""Decision -> Kubernetes manifests; pure."""
