"""Arrays on two devices, threads and compiled code: what every computation shares.

Imports nothing of the package but `errors`.
"""
