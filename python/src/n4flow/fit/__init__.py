"""The N4 algorithm: what is computed, in plain NumPy, and one module for each backend that computes it.

`bspline`, `sharpening` and `convergence` state the three parts of the method; `plain` puts them together in a
page that reads like the paper. `cpu` computes the same thing fast, `itk` asks SimpleITK, `evaluate` applies the result
at full resolution. The tests hold every compiled loop against its plain statement.
"""
