"""The parts of parity.py, one subject per file.

`work` has the folder through which both sides exchange arrays, `cases` the inputs of both, `rows`
and `compare` the table. torch_* and trl_* are PyTorch's side, ours_* is ours. `errors` plants known
errors in ours, and `sides` runs a side.
"""
