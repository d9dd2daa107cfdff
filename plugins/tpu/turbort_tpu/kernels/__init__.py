"""Kernels for TPUs in JAX and Pallas: pure functions of arrays, one source per kernel, shared by every executor."""
