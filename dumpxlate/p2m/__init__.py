"""Frame maps of paravirtual guests, and where they come from."""
