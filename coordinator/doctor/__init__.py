"""The doctor: proves by experiment, on one pod, what garbage collection will rely on.

Route: `baleen pods doctor` -> `examine.examine` -> each check of `checks.CHECKS`, on what the visit tried
(visit.py) -> the findings' rows -> everything that was tried is taken away again (scratch.py).

An experiment is made at every address of the pod's registry, for each process has a configuration of its own. It
touches only what it made itself: random content, in repositories `<prefix>/baleen-doctor-<random>`.
What a verdict means for the pod, and what mends it, is data (texts.py). Whatever could not be tried to its end is
*unproved*, and holds garbage collection like what is refuted: not proved is not safe.
Not here: what findings hold (domain/findings.py), the prober, which goes on asking between visits (prober.py).
"""
