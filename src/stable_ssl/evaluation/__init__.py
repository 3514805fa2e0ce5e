"""What features are worth: figures by named protocols, on features that are computed once."""
