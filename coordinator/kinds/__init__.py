"""What Baleen does for the pods of each kind: `kind.Kind` is the interface, with a module for each kind.

    link.py      links in the shared bucket
    relay.py     links elsewhere: only events show them
    gitlab.py    links in GitLab's metadata database

To add a kind: a member of `PodKind` and its traits (domain/pods.py), a module here, its line in `kinds.KINDS`, and, if
the doctor has more to prove, its checks (domain/findings.py `CHECKS_OF_KIND`, doctor/). docs/KINDS.md has a skeleton.
"""
