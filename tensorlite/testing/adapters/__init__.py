"""Adapters that turn other ways to write a layer into a pair of forward and backward."""
