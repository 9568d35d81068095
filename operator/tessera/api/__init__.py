"""API resource types, from which CRDs, chart copies, RBAC and reference pages are generated."""
