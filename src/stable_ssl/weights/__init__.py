"""Files of weights: reading them in the layouts of other libraries, and finding the values of a module in them."""
