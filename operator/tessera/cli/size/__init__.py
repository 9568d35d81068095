"""`tessera size`: on which hardware a model fits, how fast and at what price."""
