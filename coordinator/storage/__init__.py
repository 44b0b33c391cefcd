"""The shared object store: its port, the S3 adapter, and the key layout of a registry.

boto3 is imported here and nowhere else.
"""
