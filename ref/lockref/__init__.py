"""Reference implementation: the engine, the models, the locks and the attacks, in NumPy."""
