"""Series that claims write beside their checks for the figures of `paper_figs`: one module for each subject."""
