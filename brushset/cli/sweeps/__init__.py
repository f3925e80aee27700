"""`sweep`: many runs that differ in a few settings, planned, priced, done, and held against one another."""
