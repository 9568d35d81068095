"""How the replicas of a service change: which leave and when, how a template is rolled out."""
