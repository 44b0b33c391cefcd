"""Stream processing: Faust reads the topics, the database keeps the state.

Faust and aiokafka's consumer are imported here and nowhere else.
"""
