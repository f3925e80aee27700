"""What looks after runs by their folders alone, whoever made them and whether or not anything runs: status, logs, cancel,
resume, clean.
"""
