"""The machinery that runs the kernels: device, compiler, cuBLASLt and the captured training step."""
