"""Explanations of every decision about a service, with numbers and what would change them."""
