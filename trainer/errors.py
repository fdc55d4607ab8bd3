"""What can go wrong in training that somebody can act on. Each class's docstring is its message."""


class InvalidData(Exception):
    """The data set is not what its registration says: {detail}"""
