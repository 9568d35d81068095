"""What the simulator starts with: arguments, environment, model, memory and speed."""
