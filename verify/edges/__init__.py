"""The edges of every dimension: sizes next to usual blocks, counts beyond small integers, special values and settings.

`table` lists them as plain data, `arrangements` places special values in a step, `draws` builds steps at an edge with
Hypothesis, and `properties` holds a property for each edge and call (`EDGE_PROPERTIES`), and one for each call that
draws its edges (`DRAWN_EDGES`).
"""
