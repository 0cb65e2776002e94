"""The attacks: what each adversary does to a locked checkpoint."""
