"""Corrections: what is applied to voxels, how each is estimated, and the recipe that holds them in order.

May import `masks` and what lies below it.
"""
