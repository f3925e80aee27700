"""How one image of the user's becomes one file that the trainer sees, and which images it never sees."""
