"""Evaluation: robustness and flatness of trained weights. It never trains.

session   what runs and evaluations share        plan       which attacks and measures, on how many examples
model     find, load and build networks          evaluate   one checkpoint under a plan
network   which networks are refused             keyed      random numbers of a unit of work

A model from elsewhere:
options       how it is read, without torch      own_code   the user's class or function
inspection    what its first bytes say           fitting    tensors meet a network; normalisation in front
weight_files  its tensors, without running code      layouts    names of tensors of well-known public code
"""
