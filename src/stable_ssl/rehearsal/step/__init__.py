"""Two real steps with few samples on the CPU."""
