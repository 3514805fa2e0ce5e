"""Configurations that come with the library: one a method and data set."""
