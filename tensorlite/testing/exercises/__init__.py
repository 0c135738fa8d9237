"""Exercises in backward passes: find the mistake in one, or write one.

python -m tensorlite.exercises                  what there is
python -m tensorlite.exercises 7                read number 7 and say what is wrong in it
python -m tensorlite.exercises 7 --hint 1       which output is wrong; 2 adds ratios, 3 the formula
python -m tensorlite.exercises 7 --check        what finite differences say
python -m tensorlite.exercises 7 --explain      the answer
python -m tensorlite.exercises --write linear   write exercise_linear.py, whose backward is a hole
python -m tensorlite.exercises --try FILE       check what you wrote, with --hint 1, 2 or 3
"""
