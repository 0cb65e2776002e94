"""Experiments too long for an audit: one module each, run by `python -m lockproofs.experiments NAME`.

Each module exposes `EXPERIMENT`; what it measured is stored in results/ and read by claims and figures.
"""
