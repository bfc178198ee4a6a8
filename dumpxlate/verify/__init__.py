"""Two dumps compared, and one checked against itself."""
