"""How fast engines are: as predicted for the load that was seen, and as measured."""
