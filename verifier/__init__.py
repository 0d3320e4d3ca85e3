"""The inner parts of `verify.py`, which runs programs that a model wrote while it was rewarded for passing.

You need not read this package to change the training. It takes every program to be hostile.

Imports run as forks run, so a file says which process its code is in:

    main process        verify.py, queries.py, workers.py, interpreter.py, turns.py, protocol.py.
     |                  Nothing is forked from it, and it never loads what is below.
     |
     |-- SQL worker     sql.py, compare.py. A fresh interpreter per worker, asked through a pipe. It knows the
     |                  gold result. Its Python is trusted; the query cannot leave SQLite.
     |
     `-- 1 zygote       zygote.py, libraries.py. A second interpreter: loads the libraries once, then forks.
          `-- 2 supervisor   supervisor.py. One per worker: a folder for each program, deadline, counts, kill.
               |             Trusted; it never reads a test.
               `-- 3 judge   judge.py, unpack.py, emptiness.py. One per program. It alone knows the test.
                    |        Trusted, and behind the walls all the same.
                    `-- 4 candidate   candidate.py, pack.py. Runs the program behind walls.py. Forked before
                                      the judge reads the test. Nothing that it sends is trusted.

    child.py and verdicts.py serve all: messages, limits, what may be said of an answer. beside.py serves
    the SQL worker and database.py.

What is covered: a query cannot write, load, attach, wait for a lock, or outlast its deadline. A program
cannot see the test, write a verdict, or reach a file outside its folder and the installed libraries; it has
no network, no other process, no secret of the environment, and bounded time, memory and disk.

What is not: bugs in SQLite and in the kernel, side channels, and whether a path exists. Programs that are
judged "in one process" (all of Matplotlib's) share their process with the test, and could forge a pass.
README.md in this folder says more.

All files import the standard library and this package alone; unpack.py also makes objects of DS-1000's
libraries. Nothing of this package is imported inside a function: behind the walls the project's folder cannot
be read. This file imports nothing, since every SQL worker would pay for it.
"""

__version__ = "0.1.0"  # of the whole project; CITATION.cff and CHANGELOG.md name it too
