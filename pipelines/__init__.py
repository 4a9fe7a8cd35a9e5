"""The command line, Dask and recipes; no numerics."""
