"""Writing what a plan decided: one module per kind of object, over one Writer."""
