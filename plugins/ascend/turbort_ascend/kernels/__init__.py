"""Kernels over torch-npu's ops. Importing this package imports nothing; its modules import torch."""
