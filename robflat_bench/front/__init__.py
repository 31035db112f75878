"""The front door: what `import robflat_bench as rb` offers. The commands call the same functions.

evaluations   evaluate                       measurements  measure, attack
runs          run, load                      tables        results, board
catalogue     list, info                     publishing    push; its card is made in `model_card`
guard         model, random state and flags stay as they were
arguments     a value of another type is refused
sessions      what a call needs before it works
shown         results as grids               boards        boards as grids
grids         a table in a terminal and in a notebook
progress      bars and lines                 text          numbers and foreign text as a person reads them
console       where grids are printed        kinds         the kinds that `list` knows
"""
