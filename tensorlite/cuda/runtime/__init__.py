"""The machinery that runs the kernels: the device, the compiler, cuBLASLt, and the captured training step."""
