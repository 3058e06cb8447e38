"""Volumes in and out, one module for each format; results that appear whole or not at all.

May import `compute`, `errors` and `sections`.
"""
