"""The replica that a request gets, perhaps after a wait."""
