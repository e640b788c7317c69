"""What systems of many particles share: sums over pairs, cells, neighbours, smoothing kernels."""
