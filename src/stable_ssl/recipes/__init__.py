"""Configurations that come with the library, one per method and data set."""
