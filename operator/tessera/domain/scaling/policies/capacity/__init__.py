"""The policy `Capacity`: as many replicas as carry the arrivals within the SLO."""
