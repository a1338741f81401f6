"""Ingredients of partial differential equations: derivatives and random fields."""
