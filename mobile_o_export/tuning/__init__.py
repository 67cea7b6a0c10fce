"""Mixed precision by measurement: which weights bear fewer bits, and the best use of a budget."""
