"""Kernels: one folder per operation, one file per backend, the readable reference first."""
