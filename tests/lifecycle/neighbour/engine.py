"""The neighbour's own module of a name that others have too."""


def add(rows: list[list[float]]) -> list[float]:
    return [sum(row) for row in rows]
