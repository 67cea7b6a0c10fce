"""How outputs are compared and judged; sees arrays and tensor specs only."""
