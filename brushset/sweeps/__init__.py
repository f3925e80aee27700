"""Many runs that differ in a few settings: which they are, what they cost, what they share, what came of them.

A sweep is a list of run folders with their settings, in runs/sweeps/<name>/sweep.json. Each is an ordinary run, found again
by what it is; so the same command finds the same sweep, and does only what is missing.
"""
