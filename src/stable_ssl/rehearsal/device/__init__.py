"""Steps on tensors without values, as on a device that is not there."""
