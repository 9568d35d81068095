"""The speed of services: as predicted for the observed load, and as measured."""
