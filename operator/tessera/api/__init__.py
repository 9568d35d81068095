"""The resource types. CRDs, chart copies, RBAC and reference pages are generated from them."""
