"""What a wrong gradient looks like beside the true one, in a sentence; loaded when a check has failed."""
