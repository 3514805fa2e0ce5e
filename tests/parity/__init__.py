"""Every method trained beside the same method made of lightly's parts: weights are compared after each optimizer step.

`sides` trains and compares; each other module has the methods of one family; `benchmarks/parity_table.py` writes the
table in `docs/methods.md`.
"""
