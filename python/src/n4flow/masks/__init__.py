"""Tissue and agarose masks, estimated from the shrunken volume or given by the user.

May import `statistics` and what lies below it.
"""
