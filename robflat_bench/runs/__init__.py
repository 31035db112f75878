"""Runs: everything that trains, evaluates and writes records.

run       from a method to its record            evaluation    from a finished model to a further evaluation
tasks     the runs of a study                    sweep         run these tasks, each in its own process
observers history file, observers of plugins     environment   the machine and the code behind a record
"""
