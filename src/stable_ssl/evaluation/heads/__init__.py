"""Classifiers on features, one kind per file."""
