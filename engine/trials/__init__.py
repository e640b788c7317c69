"""What users' kernels are put to before they are used: their signature, what they promise, their adjoint."""
