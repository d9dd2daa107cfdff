"""Between torch and the kernels: turbort's ops as functions of JAX arrays, and the interface of what runs them."""
