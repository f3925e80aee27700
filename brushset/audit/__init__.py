"""The gate: what is measured of each image, which are duplicates, and what is found of a set."""
