"""One real step with few samples on the CPU."""
