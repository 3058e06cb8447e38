"""N4 bias field correction as a library: fits a bias field and evaluates it, on CPUs, on a GPU or with SimpleITK.

`bspline`, `sharpening` and `convergence` are the three parts of the method in plain NumPy; `reference` combines them to
the algorithm of the paper. `cpu` and `gpu` are fast implementations of the same algorithm; tests compare every compiled
loop with the plain one. May import `io` and the rooms below it, but not the phantom.
"""
