"""Claims with executable checks, and the audit that runs them."""
