"""Figures, run folders, HTML and CSV reports, the padding-waste gate."""
