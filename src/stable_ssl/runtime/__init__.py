"""What any training run needs, self-supervised or not: seeds, devices, precision, checkpoints, processes, signals."""
