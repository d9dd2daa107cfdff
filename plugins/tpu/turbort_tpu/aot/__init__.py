"""Compiling for TPUs that are not here: libtpu is the compiler of a TPU host and needs no TPU to compile."""
