"""What is measured of a placed service and reported: an aspect has all of it in one module."""
