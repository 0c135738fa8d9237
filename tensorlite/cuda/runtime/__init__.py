"""What runs the kernels: the device, the compiler, GEMMs through cuBLASLt, and the captured training step."""
