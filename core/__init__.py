"""What the entry points share: the import path that the quick start names, and the command line's flags."""
