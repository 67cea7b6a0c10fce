"""The report of a bundle: one HTML file that says whether it can be shipped, and shows why."""
