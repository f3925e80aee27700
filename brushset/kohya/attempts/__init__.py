"""One training in as many attempts as it takes: started, watched, resumed, and put together as if it had never been interrupted."""
