"""What decisions are shown as: explanations, Events and series of metrics."""
