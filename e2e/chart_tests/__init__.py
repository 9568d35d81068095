"""The chart itself on a world: certificates, namespaces, policies, and its life cycle."""
