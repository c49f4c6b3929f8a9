"""One loop for every model that learns."""
