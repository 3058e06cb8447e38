"""The pipeline: plan a sample, run the stages, render once, and vouch for the result.

May import every room but `commands`.
"""
