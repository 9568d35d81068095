"""What a request used, at the end of its engine and of its client."""
