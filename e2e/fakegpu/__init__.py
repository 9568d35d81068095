"""GPUs that exist only here: their driver's rules, its library, and both across processes."""
