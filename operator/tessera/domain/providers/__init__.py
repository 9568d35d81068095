"""Facts of outside providers: what each means by a count, a price, an error and a turn."""
