"""What a run leaves: its record, the outcome of every example, and where they lie."""
