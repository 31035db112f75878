"""The vocabulary: errors, parameters, catalogue rows, and what each kind of component does. Imports no torch.

errors      what the command line shows as one line          params      base of every component's parameters
infos       rows of the catalogue                            catalogue   one file per component, read without torch
examples    images under evaluation, journal, workspace      interfaces  Attack, Measure, Dataset
method      Method, Modifier, Batch, InnerAttack             launcher    Launcher, Job, Exit, Resources
observer    who watches a run                            hooks       the marker of a plugin's hooks
faults      errors of plugins, lack of memory            signals     those that ask a process to end

`randomness` and `batching` need torch; `estimates` computes the numbers of a measurement from its arrays; `files` reads
files of limited size, `archives` arrays of .npy and .npz files; `works` has the papers that components cite; `clock` is
the time that tests may move; `processes` knows those of this machine.
"""

from robflat_bench.core.catalogue import *
from robflat_bench.core.errors import *
from robflat_bench.core.examples import *
from robflat_bench.core.faults import *
from robflat_bench.core.hooks import *
from robflat_bench.core.infos import *
from robflat_bench.core.interfaces import *
from robflat_bench.core.launcher import *
from robflat_bench.core.method import *
from robflat_bench.core.observer import *
from robflat_bench.core.params import *
from robflat_bench.core.signals import *
