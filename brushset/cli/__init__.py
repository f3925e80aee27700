"""What stands behind the front door's commands: options, terminal, and one file a job. Only this room prints."""
