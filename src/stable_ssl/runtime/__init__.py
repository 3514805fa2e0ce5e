"""The engine room: seeding, devices, precision, checkpoints, signals. Knows nothing of self-supervised learning."""
