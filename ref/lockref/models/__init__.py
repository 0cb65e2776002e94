"""Models on the engine, their closed-form storage, and checkpoint directories."""
