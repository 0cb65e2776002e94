"""The locks: what each defence does to a checkpoint."""
