"""Language models: the origin of the contrast between SGD's formula and the linearised one."""
