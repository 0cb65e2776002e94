"""Figures of what `lockproofs` wrote down: report.json and stored results in, pictures and their CSV out.

Nothing is computed here but where a line lies on the paper. `lockref figures DIR` draws them all.
"""
