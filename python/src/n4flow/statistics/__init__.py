"""What a pass over the volume collects: block means, moments and histograms of each plane, and files that hold them.

May import `n4_bias` and what lies below it.
"""
