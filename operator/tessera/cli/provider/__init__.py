"""`tessera provider`: ModelProviders with the prices of a table."""
