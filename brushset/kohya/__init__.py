"""Kohya's sd-scripts as a child process: what it is told (render, flags), and what it says (parse_log)."""
