"""Runs: everything that trains, evaluates and writes records.

run       from a method to its record            evaluation    from a finished model to a further evaluation
tasks     the runs of a study                    sweep         run these tasks, each in its own process
jobs      the processes of runs, and their ids   exits         what the end of a process means
pace      how long runs take                     agenda        what a sweep will do
status    where runs stand                       site          a short job that tries a launcher
observers history file, observers of plugins     environment   the machine and the code behind a record
"""
