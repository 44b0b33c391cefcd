"""The metadata database of a GitLab Container Registry: reading it, and its rows as links.

Not here: what Baleen does for such a pod (kinds/gitlab.py), what the doctor proves of it (coordinator/doctor/gitlab.py).
"""
