"""What the configuration and the code that it names tell, and building each part for itself."""
