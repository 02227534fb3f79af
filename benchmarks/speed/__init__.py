"""The hot path of each paper, one file a paper: imported from the package and not copied."""
