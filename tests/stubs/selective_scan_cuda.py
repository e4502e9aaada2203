"""Stands in for mamba_ssm's compiled kernels, so that mamba_ssm 2.3.2 can be imported without them.

Empty on purpose: who calls a kernel gets an AttributeError. Appended to the *end* of sys.path, real kernels win.
Releases of mamba_ssm with its pull request 977 will not need it.
"""
