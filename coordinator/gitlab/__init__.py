"""The metadata database of a GitLab Container Registry: what Baleen reads there, and what it may write.

Not here: what Baleen does for such a pod (kinds/gitlab.py), what the doctor proves of it (coordinator/doctor/).
"""
