"""Triton kernels, one family per file. Each module imports torch and triton; the table imports none of them."""
