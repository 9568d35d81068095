"""What the product promises, shown on one installed world."""
