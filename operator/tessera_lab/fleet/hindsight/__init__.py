"""What a fleet costs that knows its load beforehand: a bound, and a schedule that is simulated."""
