"""The doctor: proves by experiment, on one pod, what garbage collection relies on.

Route: `baleen pods doctor` -> `examine.examine` -> each check of `checks.CHECKS`, on the visit's experiments
(visit.py) -> everything that the visit made is removed (scratch.py) -> the findings' rows.

Experiments run at every address of the pod's registry, because each process has its own configuration. They touch only
what they made themselves: random content, in repositories `<prefix>/baleen-doctor-<random>`.
What a finding means for the pod, and how to repair it, is data (texts.py). A check that could not be carried out to
its end is *unproved*, and blocks GC like a refuted one: not proved is not safe.
Not here: which findings block GC (domain/findings.py), the prober, which probes between visits (pods/prober.py).
"""
