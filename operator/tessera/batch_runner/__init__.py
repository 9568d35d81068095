"""The batch runner sends the rows of a file to its engine and publishes the results once."""
