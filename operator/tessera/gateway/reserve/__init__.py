"""The limits of a request's sender."""
