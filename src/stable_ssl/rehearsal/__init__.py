"""What can be known about a run before it begins, on a machine without its GPU."""
