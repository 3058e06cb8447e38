"""N4 bias field correction as a library: fits a bias field and evaluates it, on CPUs, on a GPU or by SimpleITK.

`bspline`, `sharpening` and `convergence` state the three parts of the method; `reference` puts them together in a
page that reads like the paper. `cpu` and `gpu` compute the same thing fast; the tests hold every compiled loop against
its plain statement. May import `io` and what lies below it, but not the phantom.
"""
