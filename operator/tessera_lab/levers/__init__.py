"""What each lever is worth: alone, in order, and beside the product of all."""
