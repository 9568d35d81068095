"""What a request says: its body, read within bounds."""
