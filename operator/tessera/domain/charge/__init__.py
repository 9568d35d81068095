"""What requests are charged, and the money of limits that gateways lend to them."""
