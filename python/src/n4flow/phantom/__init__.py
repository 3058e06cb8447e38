"""A serial-section volume whose true intensities and distortions are known.

May import `io` and what lies below it.
"""
