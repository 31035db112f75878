"""Evaluation: robustness and flatness of trained weights. It never trains.

session   what runs and evaluations share        plan       which attacks and measures, on how many examples
model     find, load and build networks          evaluate   one checkpoint under a plan
network   which networks are refused             keyed      random numbers of a unit of work
"""
