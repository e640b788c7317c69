"""Benchmarks: speed, comparisons of gradient variants, figures."""
