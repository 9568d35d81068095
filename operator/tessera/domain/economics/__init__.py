"""Whether own GPUs cost less than an API, and what use will cost."""
