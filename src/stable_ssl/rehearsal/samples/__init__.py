"""What the samples of the data sets tell."""
