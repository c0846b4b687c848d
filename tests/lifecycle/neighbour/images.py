"""The neighbour's own module of a name that others have too."""

WIDTH = 2
