"""`pretrain`: from a folder of images to a backbone, by one line. What is underneath is a recipe."""
