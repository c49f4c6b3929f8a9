"""One reader per episode format."""
