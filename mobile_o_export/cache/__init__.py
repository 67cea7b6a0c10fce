"""Results of exports, kept by what they follow from."""
