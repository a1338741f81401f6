"""Derivatives of a function, by automatic differentiation or on a grid; a residual is stated once for both."""
